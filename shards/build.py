"""Building shards: from a source to `OUT/<split>/*.tar`, the indexes and `dataset.json`.

The plan (which image lies in which shard) is a pure function of the source and the number of samples a shard,
so the same source gives the same bytes, whatever the number of processes, and a build that was interrupted
goes on with the shards that are missing.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shards.dataset import HEAD, Dataset, describe, read_dataset, write_dataset
from shards.errors import SourceError
from shards.files import atomic_write, write_json
from shards.index import index_tar, write_index
from shards.parallel import mapping
from shards.progress import progress
from shards.sources import Source, open_source

SHUFFLE_SEED: Final = 0  # images are dealt to shards in random order, so that no shard holds one class alone
PLAN: Final = ".plan.json"  # what an unfinished build was about to do


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to write: the items of a split of the source, in order."""

    source: str
    split: str
    items: tuple[int, ...]
    tar: Path


def build(
    spec: str,
    out: Path,
    *,
    samples_per_shard: int,
    holdout: float,
    processes: int,
    classes: tuple[str, ...] = (),
    part: int = 0,
    parts: int = 1,
) -> Dataset | None:
    """Build the shards of a source, or of some of its classes, and return the data set.

    Of several `parts`, jobs beside each other, it builds one and returns None, but for the one that finishes last.
    `holdout` is the share of images to set aside as `val` where the source has only one split. Raises
    SourceError for a source that cannot be used or an `out` that holds something else.
    """
    if parts > 1 and (out / HEAD).exists():
        return read_dataset(out)  # the others are done, and with them this one
    source = open_source(spec, classes)
    splits = deal(source, holdout)
    plan = {"source": fingerprint(source), "samples_per_shard": samples_per_shard, "holdout": holdout}
    begin(out, plan)
    jobs = []
    for split, (origin, items) in splits.items():
        (out / split).mkdir(exist_ok=True)
        for number, first in enumerate(range(0, len(items), samples_per_shard)):
            chosen = tuple(items[first : first + samples_per_shard])
            jobs.append(Job(spec, origin, chosen, out / split / f"{number:06d}.tar"))
    with mapping(processes, start, (spec, classes)) as spread:
        mine = jobs[part::parts]
        for _ in progress(spread(write_shard, mine), len(mine), "writing"):
            pass
        if not all(job.tar.exists() for job in jobs):
            return None
        tars = [job.tar for job in jobs]
        rows = dict(zip(tars, spread(index_tar, tars), strict=True))
    indexes = {}
    for split in splits:
        shards = [(describe(job.tar, rows[job.tar]), rows[job.tar]) for job in jobs if job.tar.parent.name == split]
        indexes[split] = write_index(out / split, shards)
    dataset = write_dataset(out, list(source.classes), indexes)
    (out / PLAN).unlink(missing_ok=True)  # another part may have seen the same end
    return dataset


def deal(source: Source, holdout: float) -> dict[str, tuple[str, list[int]]]:
    """Return, for each split to write, the source's split it is taken from and its items in random order."""
    generator = np.random.Generator(np.random.Philox(key=SHUFFLE_SEED))
    orders = {split: generator.permutation(len(items)).tolist() for split, items in source.items.items()}
    if holdout and len(orders) > 1:
        raise SourceError(f"--holdout is for sources with one split; this one has {', '.join(orders)}.")
    if holdout:
        ((split, order),) = orders.items()
        kept = len(order) - max(1, round(len(order) * holdout))
        return {"train": (split, order[:kept]), "val": (split, order[kept:])}
    return {split: (split, order) for split, order in orders.items()}


def fingerprint(source: Source) -> str:
    """Return a hash of all that the source lists."""
    return hashlib.sha256(json.dumps([list(source.classes), source.items]).encode()).hexdigest()


def begin(out: Path, plan: dict[str, object]) -> None:
    """Make `out` ready: go on with the same plan, refuse another one, and refuse to write over a data set."""
    if (out / HEAD).exists():
        raise SourceError(f"{out}: holds a data set already. Remove it, or name another folder.")
    if (out / PLAN).exists() and json.loads((out / PLAN).read_text()) != plan:
        raise SourceError(f"{out}: holds an unfinished build of another source or size. Remove it: rm -r {out}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, plan)


_source: Source  # the building process's own, opened once


def start(spec: str, classes: tuple[str, ...]) -> None:
    """Open the source in a building process."""
    global _source
    _source = open_source(spec, classes)


def write_shard(job: Job) -> None:
    """Write one shard, unless a former build wrote it."""
    if not job.tar.exists():
        from webdataset.writer import TarWriter

        # a fixed time and owner: the same source gives the same bytes
        with atomic_write(job.tar) as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for item in job.items:
                key, label = _source.items[job.split][item]
                content, extension = _source.read(job.split, item)
                tar.write({"__key__": key, extension: content, "cls": str(label).encode()})
