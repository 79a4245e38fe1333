"""The index beside the tars of a split: where each sample lies, its label and its checksum.

Two files in the split's folder: `index.npy`, one fixed-size row a sample in the order of the shards, mapped
into memory and shared by all processes; and `index.json`, the shards and the fingerprint. The tars stay plain
WebDataset; they are never rewritten.
"""

import hashlib
import json
import tarfile
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.files import atomic_write, write_json

FORMAT_VERSION: Final = 1
IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp")
END_OF_TAR: Final = bytes(512)  # an archive that was written to its end has at least one empty block there

Rows = NDArray[np.void]  # fields: offset u8, length u4, label i4, crc32 u4, key S*


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its file name, how many samples it holds, and its size in bytes."""

    name: str
    samples: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """The samples of one split.  `rows[i]` describes sample i; shard s holds rows starts[s] to starts[s+1]."""

    folder: Path
    shards: tuple[Shard, ...]
    rows: Rows
    starts: NDArray[np.int64]  # [S + 1]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.samples for shard in self.shards)

    def key(self, sample: int) -> str:
        """Return the WebDataset key of a sample."""
        return str(self.rows["key"][sample], "utf-8")

    def head(self, count: int) -> "Index":
        """Return an index of the first `count` samples alone."""
        starts = self.starts.clip(max=count)
        return replace(self, rows=self.rows[:count], starts=starts)

    def shard_of(self, sample: int) -> int:
        """Return the number of the shard that holds `sample`."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1


def row_dtype(key_bytes: int) -> np.dtype[np.void]:
    """Return the type of an index row whose keys take at most `key_bytes` bytes."""
    return np.dtype(
        [("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc32", "<u4"), ("key", f"S{key_bytes}")]
    )


def index_tar(path: Path) -> Rows:
    """Return the rows of one tar, in the order in which its images lie there.

    Raises ShardError for a tar that is cut off, a sample without an image or a label, or a key that occurs
    twice.
    """
    images: dict[str, tuple[int, int, int]] = {}  # key -> offset, length, crc32
    labels: dict[str, int] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if extension not in (*IMAGE_EXTENSIONS, "cls"):
                    continue
                file.seek(member.offset_data)
                content = file.read(member.size)
                if extension == "cls":
                    labels[key] = int(content)
                    continue
                if key in images:
                    raise ShardError(f"{path}: the key {key!r} occurs twice; give every sample a key of its own.")
                images[key] = (member.offset_data, member.size, zlib.crc32(content))
            # tarfile takes a cut at a member's boundary for the end: an archive written whole goes on with zeros
            file.seek(end)
            if file.read(512) != END_OF_TAR:
                raise ShardError(f"{path}: cut off after byte {end}, no end-of-archive block. Copy it again.")
    except (tarfile.ReadError, EOFError, OSError) as error:
        raise ShardError(f"{path}: {error}. Copy this shard again.") from error
    except ValueError as error:
        raise ShardError(f"{path}: a .cls file holds no class number ({error}).") from error
    for found, wanted, what in (
        (images, labels, "label (.cls)"),
        (labels, images, "image (.jpg, .png, .webp)"),
    ):
        if missing := [key for key in found if key not in wanted]:
            raise ShardError(f"{path}: {len(missing)} samples have no {what}, the first is {missing[0]!r}.")
    if not images:
        raise ShardError(f"{path}: no samples in it.")
    keys = [key.encode() for key in images]
    rows = np.empty(len(images), dtype=row_dtype(max(map(len, keys))))
    rows["offset"], rows["length"], rows["crc32"] = np.array(list(images.values()), dtype=np.uint64).T
    rows["label"] = [labels[key] for key in images]
    rows["key"] = keys
    return rows


def write_index(folder: Path, parts: list[tuple[Shard, Rows]]) -> Index:
    """Write the index of a split from the rows of its shards, and return it."""
    key_bytes = max(rows.dtype["key"].itemsize for _, rows in parts)
    rows = np.concatenate([rows.astype(row_dtype(key_bytes)) for _, rows in parts])
    shards = tuple(shard for shard, _ in parts)
    digest = hashlib.sha256(json.dumps([asdict(shard) for shard in shards]).encode())
    digest.update(rows.tobytes())
    with atomic_write(folder / "index.npy") as file:
        np.save(file, rows, allow_pickle=False)
    write_json(
        folder / "index.json",
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": digest.hexdigest(),
            "samples": len(rows),
            "shards": [asdict(shard) for shard in shards],
        },
    )
    return read_index(folder)


def read_index(folder: Path) -> Index:
    """Return the index of a split; its rows are mapped from the file, not read.

    Raises ShardError where it is missing, of another version, or does not belong to the tars beside it.
    """
    remedy = f"Make it anew: vitrail shards index {folder}"
    try:
        head: dict[str, Any] = json.loads((folder / "index.json").read_text())
        rows: Rows = np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ShardError(f"{folder}: no {Path(error.filename).name} here. {remedy}") from error
    except ValueError as error:
        raise ShardError(f"{folder}: the index cannot be read ({error}). {remedy}") from error
    if head.get("format_version") != FORMAT_VERSION:
        raise ShardError(
            f"{folder}/index.json: format_version is {head.get('format_version')}, not {FORMAT_VERSION}. {remedy}"
        )
    shards = tuple(Shard(**shard) for shard in head["shards"])
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards])]).astype(np.int64)
    if starts[-1] != len(rows):
        raise ShardError(f"{folder}: index.json counts {starts[-1]} samples, index.npy {len(rows)}. {remedy}")
    return Index(folder=folder, shards=shards, rows=rows, starts=starts, fingerprint=head["fingerprint"])
