"""The index beside the tars of a split: where each sample lies, its label and its checksum.

Two files in the split's folder: `index.npy`, one fixed-size row a sample in the order of the shards, mapped
into memory and shared by all processes; and `index.json`, the shards and the fingerprint. The tars stay plain
WebDataset; they are never rewritten.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from shards.cache import Cache
from shards.errors import DamagedFile, ShardError
from shards.files import atomic_write, open_regular, read_json, write_json
from shards.labels import Labels
from shards.members import AUTO, Contents, Rows, Shard, row_dtype
from shards.places import join, leads_out, short_hash

FORMAT_VERSION: Final = 1
HEAD: Final = "index.json"
ROWS: Final = "index.npy"
PARTS: Final = "parts"  # folder of the rows of tars that are indexed as they arrive


@dataclass(frozen=True, slots=True)
class Index:
    """The samples of one split: shard s holds samples starts[s] to starts[s+1].

    Of tars that are indexed as they arrive, no rows are known at first, but how many there are; those of a shard that
    arrived lie in a file of their own (`part`).
    """

    folder: Path  # of the index; its name is the split's
    shards: tuple[Shard, ...]
    known: Rows | None
    starts: NDArray[np.int64]  # [S + 1]
    fingerprint: str
    labels: Labels = AUTO  # where they stand in the tars
    place: str = ""  # folder or URL where the tars lie; empty: the index's own folder
    cache: Cache | None = None  # of tars behind URLs
    named: str = ""  # what a person calls the data set; empty: by the folder that the index's lies in

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def rows(self) -> Rows:
        """A row a sample.  Raises ShardError while some shards have not arrived."""
        if self.known is not None:
            return self.known
        return joined([self.part(shard) for shard in range(len(self.shards))])

    def row(self, sample: int) -> np.void:
        """Return the row of a sample.  Raises ShardError where its shard has not arrived."""
        row: np.void
        if self.known is not None:
            row = self.known[sample]
        else:
            shard = self.shard_of(sample)
            row = self.part(shard)[sample - int(self.starts[shard])]
        return row

    def rows_of(self, shard: int) -> Rows:
        """Return the rows of a shard.  Raises ShardError where it has not arrived."""
        if self.known is None:
            return self.part(shard)
        return self.known[self.starts[shard] : self.starts[shard + 1]]

    def is_known(self, shard: int) -> bool:
        """Return whether the rows of a shard are known: it has arrived, or needs not to."""
        return self.known is not None or self.part_file(shard).exists()

    def part(self, shard: int) -> Rows:
        """Return the rows of a shard that arrived.  Raises ShardError where it has not."""
        try:
            return _part(self.part_file(shard))
        except FileNotFoundError as error:
            raise ShardError(f"{self.tar(shard)}: not read yet; its samples are known once it arrives.") from error

    @property
    def dataset(self) -> str:
        """What a person calls the data set."""
        return self.named or str(self.folder.parent)

    def part_file(self, shard: int) -> Path:
        """Return where the rows of a shard lie once it arrived."""
        return part_file(self.folder, self.shards[shard].name, self.shards[shard].samples)

    def tar(self, shard: int) -> str:
        """Return path or URL of a shard."""
        return join(self.place or str(self.folder), self.shards[shard].name)

    @property
    def known_labels(self) -> NDArray[np.int32] | None:
        """The label of each sample, where the rows lie; None while some shards have not arrived."""
        return None if self.known is None else self.known["label"]

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.samples for shard in self.shards)

    def key(self, sample: int) -> str:
        """Return the WebDataset key of a sample; what is not UTF-8 in it, as escapes."""
        return str(self.row(sample)["key"], "utf-8", "backslashreplace")

    def called(self, sample: int) -> str:
        """Return the key of a sample, or its place in a shard that has not arrived."""
        if self.is_known(shard := self.shard_of(sample)):
            return self.key(sample)
        return f"{self.shards[shard].name}: {sample - self.starts[shard]}"

    def head(self, count: int) -> "Index":
        """Return an index of the first `count` samples alone."""
        starts = self.starts.clip(max=count)
        return replace(self, known=None if self.known is None else self.known[:count], starts=starts)

    def shard_of(self, sample: int) -> int:
        """Return the number of the shard that holds `sample`."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1


def part_file(folder: Path, name: str, *marks: object) -> Path:
    """Return where the rows of one tar lie, by its split's index; `marks` tell its content from others'."""
    return folder / PARTS / f"{short_hash(json.dumps([name, *marks]))}.npy"


class PartHead(TypedDict):
    """What lies beside the rows of one tar."""

    names: list[str]
    left: dict[str, int]
    odd: dict[str, list[str]]
    bytes: int


def write_part(path: Path, contents: Contents) -> None:
    """Write what one tar holds; once its rows are there, all is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = PartHead(names=list(contents.names), left=contents.left, odd=contents.odd, bytes=contents.bytes)
    write_json(path.with_suffix(".json"), head)
    with atomic_write(path) as file:
        np.save(file, contents.rows, allow_pickle=False)


def read_part(path: Path) -> Contents | None:
    """Return what one tar holds, None where that is not known yet, or not readable."""
    try:
        head = read_json(path.with_suffix(".json"), PartHead)
        return Contents(_part(path), tuple(head["names"]), head["left"], head["odd"], head["bytes"])
    except (OSError, DamagedFile, ValueError):
        return None


@lru_cache(maxsize=256)
def _part(path: Path) -> Rows:
    with open_regular(path):
        rows: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def joined(parts: Sequence[Rows]) -> Rows:
    """Return rows of several shards in one array, as wide as the longest key asks for."""
    dtype = row_dtype(max(rows.dtype["key"].itemsize for rows in parts))
    return np.concatenate([rows.astype(dtype) for rows in parts])


def write_index(folder: Path, parts: Sequence[tuple[Shard, Rows]], labels: Labels = AUTO, place: str = "") -> Index:
    """Write the index of a split from the rows of its shards, whose tars lie in `place`, and return it."""
    rows = joined([rows for _, rows in parts])
    shards = tuple(shard for shard, _ in parts)
    with atomic_write(folder / ROWS) as file:
        np.save(file, rows, allow_pickle=False)
    write_json(
        folder / HEAD,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint(shards, rows),
            "samples": len(rows),
            "first_label": labels.first or 0,
            "label": labels.source,
            "by_name": labels.by_name,
            "shards": [asdict(shard) for shard in shards],
        },
    )
    return read_index(folder, place)


def fingerprint(shards: Sequence[Shard], rows: Rows) -> str:
    """Return the hash of all that an index says."""
    digest = hashlib.sha256(json.dumps([asdict(shard) for shard in shards]).encode())
    digest.update(np.ascontiguousarray(rows).view(np.uint8).data)
    return digest.hexdigest()


class ShardHead(TypedDict):
    """What index.json says of a tar."""

    name: str
    samples: int
    bytes: int


class IndexHead(TypedDict):
    """index.json."""

    format_version: int
    fingerprint: str
    first_label: NotRequired[int]
    label: NotRequired[str]
    by_name: NotRequired[bool]
    shards: list[ShardHead]


def starts_of(shards: Sequence[Shard]) -> NDArray[np.int64]:
    """Return where the samples of each shard begin in a split, and where the last one's end, [shards + 1]."""
    return np.concatenate([[0], np.cumsum([shard.samples for shard in shards])]).astype(np.int64)


def read_index(folder: Path, place: str = "", remedy: str = "") -> Index:
    """Return the index of a split; its rows are mapped from the file, and read once, for their hash.

    `place` is where its tars lie, if not in the same folder; `remedy` what to do where it cannot be used.

    Raises ShardError where it is missing, cannot be read, is of another version or altered, or cannot be of any tars.
    """
    remedy = remedy or f"Make it anew: vitrail shards index {folder.parent}"
    try:
        head = read_json(folder / HEAD, IndexHead)
        if head["format_version"] != FORMAT_VERSION:
            raise ShardError(
                f"{folder / HEAD}: format_version is {head['format_version']}, not {FORMAT_VERSION}. {remedy}"
            )
        shards = tuple(Shard(shard["name"], shard["samples"], shard["bytes"]) for shard in head["shards"])
        open_regular(folder / ROWS).close()
        rows: Rows = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
        if rows.ndim != 1 or rows.dtype != row_dtype(rows.dtype["key"].itemsize):
            raise DamagedFile(folder / ROWS, "it has other columns")
    except FileNotFoundError as error:
        raise ShardError(f"{folder}: no {Path(error.filename).name} here. {remedy}") from error
    except DamagedFile as error:
        raise ShardError(f"{error} {remedy}") from error
    except OSError as error:
        raise ShardError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}). See to the disk or its rights."
        ) from error
    except (ValueError, EOFError, TypeError, KeyError, SyntaxError, OverflowError) as error:
        raise ShardError(f"{folder / ROWS}: torn or altered ({error}). {remedy}") from error
    starts = starts_of(shards)
    if starts[-1] != len(rows) or fingerprint(shards, rows) != head["fingerprint"]:
        raise ShardError(f"{folder}: {HEAD} and {ROWS} are not as they were written together. {remedy}")
    for shard, first, last in zip(shards, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if leads_out(shard.name) or (not place and "/" in shard.name):
            raise ShardError(f"{folder / HEAD}: {shard.name!r} is no name of a file in this folder. {remedy}")
        starts_at, length, label = (rows[name][first:last] for name in ("offset", "length", "label"))
        if (
            shard.samples < 1
            or starts_at.max() > shard.bytes  # else a sum could begin again at 0
            or (starts_at + length).max() > shard.bytes
            or label.min() < 0
        ):
            raise ShardError(f"{folder / HEAD}: what it says of {shard.name} cannot be. {remedy}")
    return Index(
        folder=folder,
        shards=shards,
        known=rows,
        starts=starts,
        fingerprint=head["fingerprint"],
        labels=Labels(head.get("label", "auto"), head.get("first_label", 0), by_name=head.get("by_name", False)),
        place=place,
    )
