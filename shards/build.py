"""Building shards: from a source to `OUT/<split>/*.tar`, the indexes and `dataset.json`.

The plan (which image lies in which shard) is a pure function of the source and the number of samples a shard,
so the same source gives the same bytes, whatever the number of processes, and a build that was interrupted
goes on with the shards that are missing. What each shard holds is noted beside it before it gets its name, until the
index says it.
"""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.arrange import Allowed, shown
from shards.dataset import (
    HEAD,
    Dataset,
    notes_of,
    notes_of_images,
    read_dataset,
    read_head,
    write_dataset,
)
from shards.decode import FORMATS, decode, kind_of
from shards.errors import DamagedFile, SampleError, SourceError
from shards.files import atomic_write, read_json, sweep, write_json
from shards.index import PARTS, part_file, read_part, write_index, write_part
from shards.members import Contents, index_tar
from shards.oddities import TURNED, oddities
from shards.pack import Sample, pack
from shards.parallel import mapping
from shards.progress import progress
from shards.sources import Images, Source, encode_png, open_source

SHUFFLE_SEED: Final = 0  # images are dealt to shards in random order, so that no shard holds one class alone
PLAN: Final = ".plan.json"  # what an unfinished build was about to do
SMALLER: Final = "were longer on the shorter side than --resize-shorter, and are stored smaller"
NOT_TURNED: Final = "of these had an EXIF orientation, which is dropped: they lie as their pixels do, not turned"


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to write: key and class number of each of its samples, in order, and where the source has them."""

    split: str
    items: list[tuple[str, int]]
    places: list[Any]
    tar: Path
    resize_shorter: int


def build(
    spec: str,
    out: Path,
    *,
    samples_per_shard: int,
    holdout: float,
    processes: int,
    resize_shorter: int = 0,
    classes: tuple[str, ...] = (),
    allowed: Allowed | None = None,
    part: int = 0,
    parts: int = 1,
) -> Dataset | None:
    """Build the shards of a source, or of some of its classes, and return the data set.

    Of several `parts`, jobs beside each other, it builds one and returns None, but for the one that finishes last.
    `holdout` is the share of each class to set aside as `val` where the source has only one split; images whose
    shorter side has more than `resize_shorter` pixels, if that is not 0, are stored smaller. Raises SourceError for a
    source that cannot be used or an `out` that holds something else.
    """
    allowed = allowed or Allowed()
    if Path(spec).is_dir() and out.resolve().is_relative_to(Path(spec).resolve()):
        raise SourceError(f"{out}: lies in the source, and would become a part of it. Name a folder outside of {spec}.")
    source = open_source(spec, classes, allowed)
    splits = deal(source, holdout)
    plan = {
        "source": fingerprint(source),
        "samples_per_shard": samples_per_shard,
        "holdout": holdout,
        "resize_shorter": resize_shorter,
    }
    if parts > 1 and built(out) == plan:
        return read_dataset(out)  # the others are done, and with them this one
    begin(out, plan)
    jobs = []
    for split, (origin, order) in splits.items():
        (out / split).mkdir(exist_ok=True)
        items, places = source.items[origin], source.places[origin]
        for number, first in enumerate(range(0, len(order), samples_per_shard)):
            chosen = order[first : first + samples_per_shard]
            tar = out / split / f"{number:06d}.tar"
            jobs.append(Job(split, [items[i] for i in chosen], [places[i] for i in chosen], tar, resize_shorter))
    mine = jobs[part::parts]
    with mapping(min(processes, len(mine)), start, (source.images,)) as spread:
        for _ in progress(spread(write_shard, mine), len(mine), "writing"):
            pass
    if not all(job.tar.exists() for job in jobs):
        return None
    held = {job.tar: contents_of(job.tar) for job in progress(jobs, len(jobs), "indexing")}
    indexes = {}
    for split in splits:
        shards = [(held[job.tar].shard(job.tar.name), held[job.tar].rows) for job in jobs if job.split == split]
        indexes[split] = write_index(out / split, shards)
    account = source.account
    account.notes += [*notes_of_sizes(held.values()), *notes_of_images(held.values()), *notes_of(indexes)]
    write_dataset(out, source.classes, indexes, plan=plan, source=account.as_json(), notes=account.notes)
    (out / PLAN).unlink(missing_ok=True)  # another part may have seen the same end
    for split in splits:
        shutil.rmtree(out / split / PARTS, ignore_errors=True)
    return read_dataset(out)


def deal(source: Source, holdout: float) -> dict[str, tuple[str, list[int]]]:
    """Return, for each split to write, the source's split it is taken from and its items in random order."""
    generator = np.random.Generator(np.random.Philox(key=SHUFFLE_SEED))
    orders = {split: generator.permutation(len(items)).tolist() for split, items in source.items.items()}
    if holdout and len(orders) > 1:
        raise SourceError(f"--holdout is for sources with one split; this one has {', '.join(orders)}.")
    if holdout:
        ((split, order),) = orders.items()
        labels = np.array([label for _, label in source.items[split]])
        held_out = set(hold_out(labels, order, holdout, source))
        return {
            "train": (split, [item for item in order if item not in held_out]),
            "val": (split, [item for item in order if item in held_out]),
        }
    return {split: (split, order) for split, order in orders.items() if order}


def hold_out(labels: NDArray[np.int64], order: list[int], share: float, source: Source) -> list[int]:
    """Return the items to set aside, of each class its share, as nearly as whole images can: never a class's last one.

    Raises SourceError where nothing would be left on one side.
    """
    sizes = np.bincount(labels, minlength=len(source.classes)).tolist()
    exact = [Fraction(share).limit_denominator() * size for size in sizes]
    counts = [min(int(part), max(size - 1, 0)) for part, size in zip(exact, sizes, strict=True)]
    left = max(1, round(share * len(labels))) - sum(counts)
    # the images that are left over go to the classes that were cut most
    for label in sorted(range(len(sizes)), key=lambda label: counts[label] - exact[label])[: max(left, 0)]:
        counts[label] += counts[label] + 1 < sizes[label]
    if not sum(counts):
        raise SourceError(f"--holdout {share}: a class of one image keeps it, so that nothing can be held out.")
    if without := [source.classes[label] for label, size in enumerate(sizes) if size and not counts[label]]:
        source.account.notes.append(
            f"{len(without)} classes have too few images for --holdout {share}: {shown(without)}."
        )
    if lone := [source.classes[label] for label, size in enumerate(sizes) if size == 1]:
        source.account.notes.append(f"{len(lone)} classes have one image: {shown(lone)}.")
    chosen: list[int] = []
    for item in reversed(order):
        if counts[labels[item]]:
            counts[labels[item]] -= 1
            chosen.append(item)
    return chosen


def fingerprint(source: Source) -> str:
    """Return a hash of all that the source lists."""
    return hashlib.sha256(json.dumps([list(source.classes), source.items]).encode()).hexdigest()


def built(out: Path) -> dict[str, Any] | None:
    """Return the plan of the data set in a folder, None where there is none, or where it does not say."""
    try:
        return read_head(out).get("plan")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFile as error:
        raise SourceError(f"{error} Nobody can say what {out} holds. Remove it: rm -r {out}") from error


def begin(out: Path, plan: dict[str, object]) -> None:
    """Make `out` ready: go on with the same plan, refuse another one, and refuse to write over a data set."""
    if (out / HEAD).exists():
        raise SourceError(f"{out}: holds a data set already. Remove it, or name another folder.")
    # looked at before the plan is: another part that begins at the same time writes that first
    taken = out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir()))
    try:
        begun = read_json(out / PLAN, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        begun = plan
        if taken:
            raise SourceError(f"{out}: holds something else already. Name a new folder.") from None
    except DamagedFile as error:
        raise SourceError(f"{error} Nobody can say what {out} was to become. Remove it: rm -r {out}") from error
    if begun != plan:
        raise SourceError(f"{out}: holds an unfinished build of another source or size. Remove it: rm -r {out}")
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, *out.iterdir()):
        if folder.is_dir():
            sweep(folder)
    write_json(out / PLAN, plan)


_images: Images  # of the source, in a process that writes shards


def start(images: Images) -> None:
    """Make a process ready to write shards."""
    global _images
    _images = images


def write_shard(job: Job) -> None:
    """Write one shard, unless a former build wrote it."""
    if job.tar.exists():
        return
    odd: dict[str, list[str]] = {}
    smaller: Counter[str] = Counter()

    def samples() -> Iterator[Sample]:
        for (key, label), place in zip(job.items, job.places, strict=True):
            content, extension = _images.read(place)
            if job.resize_shorter:
                try:
                    content, extension, how = fitted(content, extension, job.resize_shorter)
                    smaller.update(how)
                except SampleError:
                    kind = kind_of(content)
                    if kind in FORMATS:  # pack says what the others are
                        odd.setdefault(f"{kind} that is damaged", []).append(key)
            yield Sample(key, label, content, extension)

    with atomic_write(job.tar) as file:
        contents = pack(file, samples())
        write_part(part_of(job.tar, contents.bytes), contents._replace(odd=contents.odd | odd, left=dict(smaller)))


def part_of(tar: Path, size: int) -> Path:
    """Return where it is noted what a tar of so many bytes holds, while its build is not done."""
    return part_file(tar.parent, tar.name, size)


def contents_of(tar: Path) -> Contents:
    """Return what a written tar holds: as it was noted, else it is read."""
    return read_part(part_of(tar, tar.stat().st_size)) or index_tar(tar)


def fitted(content: bytes, extension: str, shorter: int) -> tuple[bytes, str, list[str]]:
    """Return an image as it is stored, its extension, and what became of it: nothing if it is not longer than that.

    One whose shorter side is longer is decoded as training does, scaled with the antialiasing filter that ImageNet's
    evaluation uses, and stored as PNG if it was one, else as JPEG. Raises SampleError for one that cannot be decoded.
    """
    pixels = decode(content, "")
    height, width = pixels.shape[:2]
    if min(width, height) <= shorter:
        return content, extension, []
    how = [SMALLER, NOT_TURNED] if TURNED in oddities(content) else [SMALLER]
    size = shorter * width // min(width, height), shorter * height // min(width, height)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if kind_of(content) == "PNG":
        return encode_png(image), "png", how
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95, subsampling="4:4:4")
    return buffer.getvalue(), "jpg", how


def notes_of_sizes(contents: Iterable[Contents]) -> list[str]:
    """Return what was done to images to make them smaller, a sentence each."""
    count: Counter[str] = Counter()
    for content in contents:
        count.update(content.left)
    return [f"{count[how]:,} images {how}." for how in (SMALLER, NOT_TURNED) if count[how]]
