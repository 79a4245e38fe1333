"""A data set: a folder of splits with their indexes, and `dataset.json`, which names classes and splits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import SampleError, ShardError
from shards.files import write_json
from shards.index import Index, Rows, Shard, index_tar, read_index, write_index
from shards.parallel import mapping
from shards.progress import progress
from shards.reader import Reader

FORMAT_VERSION: Final = 1
HEAD: Final = "dataset.json"  # names classes and splits


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set on disk: class names in the order of their numbers, and the index of each split."""

    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, Index]

    def evaluation_split(self) -> str | None:
        """Return the split to evaluate on: `val` where there is one, else `test`, else None."""
        return next((name for name in ("val", "test") if name in self.splits), None)


def write_dataset(folder: Path, classes: list[str], splits: dict[str, Index]) -> Dataset:
    """Write `dataset.json` and return the data set."""
    write_json(
        folder / HEAD,
        {
            "format_version": FORMAT_VERSION,
            "classes": classes,
            "splits": {
                name: {
                    "samples": len(index),
                    "shards": len(index.shards),
                    "bytes": sum(shard.bytes for shard in index.shards),
                    "fingerprint": index.fingerprint,
                }
                for name, index in splits.items()
            },
        },
    )
    return read_dataset(folder)


def read_dataset(folder: Path) -> Dataset:
    """Return the data set in `folder`.  Raises ShardError that says what is missing and how to make it."""
    build = f"Build one with: vitrail shards build SOURCE {folder}"
    if not folder.exists():
        raise ShardError(f"{folder}: no such folder. {build}")
    try:
        head = json.loads((folder / HEAD).read_text())
    except FileNotFoundError as error:
        if any(folder.glob("*/*.tar")) or any(folder.glob("*.tar")):
            raise ShardError(f"{folder}: tars, but no index. Make it: vitrail shards index {folder}") from error
        raise ShardError(f"{folder}: no shards here (no dataset.json, no tars). {build}") from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{folder}/dataset.json: cannot be read ({error}). {build}") from error
    splits = {name: read_index(folder / name) for name in head["splits"]}
    for name, index in splits.items():
        if index.fingerprint != head["splits"][name]["fingerprint"]:
            raise ShardError(
                f"{folder / name}: its index is not the one that dataset.json was written with. "
                f"Make both anew: vitrail shards index {folder}"
            )
    return Dataset(folder=folder, classes=tuple(head["classes"]), splits=splits)


def index_dataset(folder: Path, processes: int) -> Dataset:
    """Index tars made elsewhere, `folder/<split>/*.tar`, as they are; write the indexes and `dataset.json`."""
    split_folders = sorted({tar.parent for tar in folder.glob("*/*.tar")})
    if not split_folders:
        where = "tars must lie in folders named for their split" if any(folder.glob("*.tar")) else "no tars here"
        raise ShardError(f"{folder}: {where}, for instance {folder}/train/000000.tar.")
    tars = [tar for split in split_folders for tar in sorted(split.glob("*.tar"))]
    with mapping(processes) as spread:
        rows = dict(zip(tars, progress(spread(index_tar, tars), len(tars), "indexing"), strict=True))
    splits = {}
    for split in split_folders:
        parts = [(describe(tar, rows[tar]), rows[tar]) for tar in tars if tar.parent == split]
        splits[split.name] = write_index(split, parts)
    highest = max(int(index.rows["label"].max()) for index in splits.values())
    known = json.loads((folder / HEAD).read_text())["classes"] if (folder / HEAD).exists() else []
    classes = known if len(known) > highest else [str(label) for label in range(highest + 1)]
    return write_dataset(folder, classes, splits)


def describe(tar: Path, rows: Rows) -> Shard:
    """Return what the index says of a tar."""
    return Shard(name=tar.name, samples=len(rows), bytes=tar.stat().st_size)


def verify_split(index: Index) -> list[str]:
    """Read every byte of a split and return the problems, one sentence each; none means that all is well."""
    problems = []
    reader = Reader(index)
    for number, shard in enumerate(progress(index.shards, len(index.shards), f"verifying {index.folder.name}")):
        path = index.folder / shard.name
        if not path.exists():
            problems.append(f"{path}: missing; the index names {shard.samples} samples in it.")
            continue
        if path.stat().st_size != shard.bytes:
            problems.append(f"{path}: {path.stat().st_size} bytes, the index says {shard.bytes}.")
        for sample in range(index.starts[number], index.starts[number + 1]):
            try:
                reader.read(sample)
            except ShardError as error:
                problems.append(str(error))
                break
            except SampleError as error:
                problems.append(str(error))
    return problems
