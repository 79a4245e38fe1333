"""A data set: a folder of splits with their indexes, and `dataset.json`, which names classes and splits."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

import numpy as np

from shards.arrange import shown, split_named
from shards.cache import Cache
from shards.errors import DamagedFile, ShardError
from shards.files import read_json, write_json
from shards.index import Index, read_index
from shards.members import Contents
from shards.places import is_folder_name, is_url, join
from shards.repeats import again, contrary, marks_of, shared

FORMAT_VERSION: Final = 1
HEAD: Final = "dataset.json"  # names classes and splits
HERE: Final = "."  # the place of tars whose index does not lie in the same folder, but in one of the same data set


class SplitHead(TypedDict):
    """What dataset.json says of a split."""

    fingerprint: str
    samples: NotRequired[int]
    shards: NotRequired[int]
    bytes: NotRequired[int]


class SourceHead(TypedDict):
    """What dataset.json says of the files that it was made of."""

    files: int
    taken: int
    not_taken: dict[str, int]
    examples: dict[str, str]


class Head(TypedDict):
    """What is read of dataset.json."""

    format_version: int
    classes: list[str]
    splits: dict[str, SplitHead]
    place: NotRequired[str]
    plan: NotRequired[dict[str, Any]]  # of `vitrail shards build`
    source: NotRequired[SourceHead]
    notes: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set on disk: class names in the order of their numbers, and the index of each split.

    Splits are called train, val and test, however their folders are spelled; others as their folders.
    """

    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, Index]
    named: str  # what a person calls it

    def evaluation_split(self) -> str | None:
        """Return the split to evaluate on: `val` where there is one, else `test`, else None."""
        return next((name for name in ("val", "test") if name in self.splits), None)

    def head(self) -> Head:
        """Return what dataset.json says, or would say of tars read as they arrive, and of splits in other roles."""
        own = _head_of(self.classes, self.splits)
        try:
            said = read_head(self.folder)
        except FileNotFoundError:
            return own
        lie = {split_named(name) or name: split["fingerprint"] for name, split in said["splits"].items()}
        return said if lie == {name: index.fingerprint for name, index in self.splits.items()} else {**said, **own}

    def missing_shards(self) -> list[str]:
        """Return which tars are not there or not as large as the index says, a sentence for each."""
        return [sentence for index in self.splits.values() for sentence in missing_shards(index)]


def write_dataset(folder: Path, classes: Sequence[str], splits: Mapping[str, Index], **about: Any) -> None:
    """Write `dataset.json`, with what else there is to say about the data."""
    write_json(folder / HEAD, {**_head_of(classes, splits), **about})


def _head_of(classes: Sequence[str], splits: Mapping[str, Index]) -> Head:
    return Head(
        format_version=FORMAT_VERSION,
        classes=list(classes),
        splits={
            name: SplitHead(
                samples=len(index),
                shards=len(index.shards),
                bytes=sum(shard.bytes for shard in index.shards),
                fingerprint=index.fingerprint,
            )
            for name, index in splits.items()
        },
    )


def read_dataset(folder: Path, *, place: str = "", named: str = "", cache: Cache | None = None) -> Dataset:
    """Return the data set in `folder`.  Raises ShardError that says what is missing and how to make it.

    Where its tars lie elsewhere, `place` is that, `named` what a person calls it, and `cache` where those behind URLs
    are fetched to.
    """
    build = f"Build one with: vitrail shards build SOURCE {folder}"
    if not folder.is_dir():
        what = "a file; name the folder of the data set" if folder.exists() else f"no such folder. {build}"
        raise ShardError(f"{folder}: {what}")
    index = f"vitrail shards index {folder}"
    anew = f"Make it anew where it lies, and copy it to {place} again." if is_url(place) else f"Make it anew: {index}"
    try:
        head = read_head(folder)
    except FileNotFoundError as error:
        if split_named(folder.name) and ((folder / "index.json").exists() or (folder.parent / HEAD).exists()):
            raise ShardError(f"{folder}: one split of a data set; name the folder above it: {folder.parent}") from error
        if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
            raise ShardError(f"{folder}: tars, but no index. Make it: {index}") from error
        raise ShardError(f"{folder}: no shards here (no {HEAD}, no tars). {build}") from error
    except DamagedFile as error:
        raise ShardError(f"{error} {anew}") from error
    if head["format_version"] != FORMAT_VERSION:
        raise ShardError(f"{folder / HEAD}: format_version is {head['format_version']}, not {FORMAT_VERSION}.")
    said = head.get("place", "")
    if said not in ("", HERE, place):
        raise ShardError(f"{folder / HEAD}: its tars would lie in {said!r}, which leads out of it. {anew}")
    together = (place or str(folder)) if said else ""  # for all splits; else each has them beside its index
    splits: dict[str, Index] = {}
    for name, split in head["splits"].items():
        if not is_folder_name(name):
            raise ShardError(f"{folder / HEAD}: {name!r} is no name of a folder in it. {anew}")
        found = read_index(folder / name, together or (join(place, name) if place else ""), anew)
        labels = replace(found.labels, names=tuple(head["classes"]) if found.labels.by_name else ())
        splits[split_named(name) or name] = replace(found, named=named, cache=cache, labels=labels)
        if found.fingerprint != split["fingerprint"]:
            raise ShardError(f"{folder / name}: its index is not the one that {HEAD} was written with. {anew}")
    return Dataset(folder=folder, classes=tuple(head["classes"]), splits=splits, named=named or str(folder))


def read_head(folder: Path) -> Head:
    """Return dataset.json.

    Raises FileNotFoundError where there is none, DamagedFile, and ShardError where the system does not give it.
    """
    try:
        return read_json(folder / HEAD, Head)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ShardError(
            f"{folder / HEAD}: cannot be read ({error.strerror}). See to the disk or its rights."
        ) from error


def notes_of_images(contents: Iterable[Contents]) -> list[str]:
    """Return what images are that cannot be read, a sentence for each kind."""
    odd: dict[str, list[str]] = {}
    for content in contents:
        for kind, keys in content.odd.items():
            odd.setdefault(kind, []).extend(keys)
    return [f"{len(keys)} images are {kind}, and cannot be read: {shown(keys)}." for kind, keys in odd.items()]


def notes_of(splits: Mapping[str, Index]) -> list[str]:
    """Return what a person should know of the samples of all splits, a sentence each."""
    notes = []
    for name, index in splits.items():
        if twice := len(np.unique(index.rows["key"][again(index.rows["key"])[0]])):
            notes.append(f"{twice} keys of {name} occur in more than one shard.")
    marks = {name: marks_of(index.rows) for name, index in splits.items()}
    for first, second in combinations(splits, 2):
        if same := len(shared(marks[first], marks[second])[0]):
            notes.append(f"{same} images of {second} are in {first} too, byte for byte.")
    labels = np.concatenate([index.rows["label"] for index in splits.values()])
    if count := len(contrary(np.concatenate(list(marks.values())), labels)[0]):
        notes.append(f"{count} images have two labels: the same bytes lie in two classes.")
    return notes


def missing_shards(index: Index, numbers: Iterable[int] | None = None) -> list[str]:
    """Return which tars of a split, or of some of its shards, are not there or have another size, a sentence each.

    Those behind URLs are not asked for: each is looked at when it is fetched.
    """
    problems = []
    for number in range(len(index.shards)) if numbers is None else numbers:
        shard, path = index.shards[number], index.tar(number)
        if is_url(path):
            continue
        try:
            status = os.stat(path)  # one a shard: a file system over the network answers each in milliseconds
        except FileNotFoundError:
            problems.append(f"{path}: missing; the index names {shard.samples} samples in it.")
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}).")
        else:
            if not stat.S_ISREG(status.st_mode):
                problems.append(f"{path}: not a regular file.")
            elif status.st_size != shard.bytes:
                problems.append(f"{path}: {status.st_size} bytes, the index says {shard.bytes}.")
    return problems
