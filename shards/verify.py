"""Checking shards: every byte and label against the index, every image decoded, and what a person should know of them.

Problems are what a run would stumble over: bytes or labels that the index does not know, tars that are missing or
damaged, images that cannot be decoded, a key that stands for two samples of a split. The rest is worth knowing and may
be meant: equal images, unequal classes, unusual images.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np

from shards.arrange import shown
from shards.dataset import missing_shards
from shards.decode import decode
from shards.errors import SampleError, ShardError
from shards.index import Index, joined
from shards.members import Rows, index_tar, rows_of
from shards.oddities import oddities
from shards.parallel import mapping
from shards.progress import progress
from shards.reader import arrive
from shards.repeats import Places, again, contrary, marks_of, shared

EXAMPLES: Final = 4


@dataclass
class Some:
    """How many there are of something, and the names of a few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.update(Some(1, [name]))

    def update(self, more: "Some") -> None:
        """Count more of the same."""
        self.count += more.count
        self.examples += more.examples[: EXAMPLES - len(self.examples)]

    @classmethod
    def of(cls, names: Sequence[str], count: int | None = None) -> Self:
        """Return so many, or as many as there are names."""
        return cls(len(names) if count is None else count, list(names[:EXAMPLES]))


class Found(NamedTuple):
    """What a look at one shard found."""

    problems: list[str]
    rows: Rows  # that it holds; none where that cannot be said
    unusual: dict[str, Some]


@dataclass
class SplitReport:
    """What the samples of one split are."""

    samples: int
    smallest_class: int  # in samples, of those that have any
    largest_class: int
    ratio: float  # of the two
    empty_classes: Some
    same_bytes: Some  # images that occurred before
    keys_twice: Some
    unusual: dict[str, Some]  # images, by what is unusual


@dataclass
class PairReport:
    """What two splits share."""

    splits: tuple[str, str]
    same_bytes: Some  # images of the second
    same_keys: Some


@dataclass
class Report:
    """What `verify` says; its names are those of the JSON."""

    samples: int
    problems: list[str]
    splits: dict[str, SplitReport]
    pairs: list[PairReport]
    two_labels: Some  # images whose bytes lie in two classes


def verify(splits: Mapping[str, Index], classes: Sequence[str] = (), processes: int = 1) -> Report:
    """Read every byte of some splits, and report; without problems all is well.

    Each tar is indexed anew and compared, its labels too, and each image is decoded. Images of equal length and CRC-32
    are taken for equal. Memory: the rows of all samples.
    """
    shards = [(name, number) for name, index in splits.items() for number in range(len(index.shards))]
    found: dict[str, list[Found]] = {name: [] for name in splits}
    with mapping(min(processes, len(shards))) as spread:
        looked = spread(_verify_shard, (_alone(splits[name], number) for name, number in shards))
        for (name, _), shard in zip(shards, progress(looked, len(shards), "verifying"), strict=True):
            found[name].append(shard)
    rows = {name: joined([shard.rows for shard in of_split]) for name, of_split in found.items()}
    reports = {name: _of_split(rows[name], found[name], classes) for name in splits}
    problems = [problem for of_split in found.values() for shard in of_split for problem in shard.problems]
    problems += [
        f"{splits[name].dataset}: {report.keys_twice.count} samples of {name} have the key of another one: "
        f"{shown(report.keys_twice.examples)}. Give every sample its own key, and pack its shard again."
        for name, report in reports.items()
        if report.keys_twice.count
    ]
    return Report(
        samples=sum(len(index) for index in splits.values()),
        problems=problems,
        splits=reports,
        pairs=[_of_pair((first, rows[first]), (second, rows[second])) for first, second in combinations(splits, 2)],
        two_labels=_two_labels(rows),
    )


def _alone(index: Index, number: int) -> Index:
    """Return an index of one shard alone: what another process needs to look at it."""
    known = None if index.known is None else np.array(index.rows_of(number))
    shard = index.shards[number]
    return replace(index, shards=(shard,), known=known, starts=np.array([0, shard.samples]))


def _verify_shard(index: Index) -> Found:
    """Return what is to be said of an index's only shard."""
    path = index.tar(0)
    found = Found(missing_shards(index), rows_of({}, ()), {})
    if found.problems:
        return found

    def look(key: str, content: bytes) -> None:
        try:
            decode(content, key)
        except SampleError as error:
            found.problems.append(f"{path}: {error}")
            return
        for what in oddities(content):
            found.unusual.setdefault(what, Some()).add(key)

    try:
        with local_copy(index, 0) as tar:
            held = index_tar(tar, index.labels, look).rows
        said = index.rows_of(0)
    except ShardError as error:
        says = str(error)
        found.problems.append(says if path in says else f"{path}: {says}")  # and not of its copy in the cache alone
        return found
    if len(held) == len(said):
        found.problems.extend(_differing(index, held, said))
    else:
        found.problems.append(f"{path}: {len(held)} samples, the index says {len(said)}.")
    return found._replace(rows=held)


def _differing(index: Index, held: Rows, said: Rows) -> Iterator[str]:
    """Yield a sentence for each sample that is not what the index of its shard says."""
    differs = {name: held[name] != said[name] for name in said.dtype.names or ()}
    for sample in np.flatnonzero(np.logical_or.reduce(list(differs.values()))).tolist():
        row, wanted = held[sample], said[sample]
        what = ", ".join(
            f"{name} {row[name]}, the index says {wanted[name]}" for name, of_all in differs.items() if of_all[sample]
        )
        yield (
            f"{index.tar(0)}: sample {index.key(sample)!r} at byte {wanted['offset']} has {what}. Copy this shard "
            f"again, or if it is the index that is wrong: vitrail shards index {index.dataset}"
        )


@contextmanager
def local_copy(index: Index, shard: int) -> Iterator[Path]:
    """Give the file of a shard, that of one behind a URL in the cache, where it stays meanwhile."""
    if not index.cache:
        yield Path(index.tar(shard))
        return
    descriptor = arrive(index, shard)
    try:
        yield index.cache.path(index.tar(shard))
    finally:
        os.close(descriptor)


def _of_split(rows: Rows, found: Iterable[Found], classes: Sequence[str]) -> SplitReport:
    counts = np.bincount(rows["label"], minlength=len(classes))
    present = counts[counts > 0]
    smallest, largest = int(present.min(initial=len(rows))), int(present.max(initial=0))
    empty = [classes[label] if classes else str(label) for label in np.flatnonzero(counts == 0).tolist()]
    unusual: dict[str, Some] = {}
    for what, some in chain.from_iterable(shard.unusual.items() for shard in found):
        unusual.setdefault(what, Some()).update(some)
    return SplitReport(
        samples=len(rows),
        smallest_class=smallest,
        largest_class=largest,
        ratio=largest / max(smallest, 1),
        empty_classes=Some.of(empty),
        same_bytes=_pairs(rows, again(marks_of(rows)), rows),
        keys_twice=_keys(rows, again(rows["key"])[0]),
        unusual=unusual,
    )


def _of_pair(first: tuple[str, Rows], second: tuple[str, Rows]) -> PairReport:
    (name, rows), (other_name, others) = first, second
    return PairReport(
        splits=(name, other_name),
        same_bytes=_pairs(others, shared(marks_of(rows), marks_of(others)), rows),
        same_keys=_keys(others, shared(rows["key"], others["key"])[0]),
    )


def _two_labels(rows: Mapping[str, Rows]) -> Some:
    every = joined(list(rows.values()))
    return _pairs(every, contrary(marks_of(every), every["label"]), every)


def _keys(rows: Rows, places: Places) -> Some:
    return Some.of([_key(rows, place) for place in places[:EXAMPLES]], len(places))


def _pairs(rows: Rows, found: tuple[Places, Places], others: Rows) -> Some:
    """Return images that are equal to others, both by their keys."""
    places, elsewhere = found
    names = [
        f"{_key(rows, place)} = {_key(others, other)}"
        for place, other in zip(places[:EXAMPLES], elsewhere[:EXAMPLES], strict=True)
    ]
    return Some.of(names, len(places))


def _key(rows: Rows, place: np.intp) -> str:
    return str(rows["key"][place], "utf-8", "backslashreplace")
