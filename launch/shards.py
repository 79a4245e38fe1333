"""`vitrail shards`: build, index, verify and show shards."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from launch.verb import Json, Verb
from pipeline.data.order import Order
from pipeline.data.shuffle import Shuffle, shuffle_of
from shards.arrange import Account, Allowed
from shards.build import build
from shards.dataset import Dataset
from shards.errors import BadRequest, Problem, SourceError, harmless
from shards.open import Opener, Reading
from shards.parallel import allowed_cores
from shards.terminal import plain
from shards.verify import Report, Some, verify

READING: Final = Reading()

BATCH: Final = 1024  # DeiT's, over
VIRTUAL_RANKS: Final = 16


def cores() -> int:
    """Return how many cores this process may use."""
    return len(allowed_cores())


@dataclass(frozen=True, kw_only=True)
class Build(Verb, Allowed):
    """Build shards from images: OUT/<split>/*.tar, the index, and OUT/dataset.json.

    Example: vitrail shards build PHOTOS OUT --holdout 0.1
    """

    source: tyro.conf.Positional[str]
    """Folder of class folders (train/, val/, test/ above them or not), a zip of one, `digits`, `torchvision:NAME`"""
    out: tyro.conf.Positional[Path]
    """Folder to write"""
    samples_per_shard: int = 1000  # images a tar
    holdout: float = 0.0  # share of each class to set aside as `val`, for a source with one split
    resize_shorter: int = 0
    """Pixels: images with a longer shorter side are scaled to it (bicubic, antialiased) and stored as JPEG of quality
    95 in 4:4:4, PNG as PNG, in RGB, without EXIF, not turned; all others keep their bytes. 0: all keep them"""
    classes: tuple[str, ...] = ()  # only these, in this order; all, if none is named
    processes: int = field(default_factory=cores)  # that work beside each other
    parts: int = 1  # jobs beside each other, on one file system
    part: int = 0  # the one that this is, from 0
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Build, and say what came out."""
        found = []
        if self.samples_per_shard < 1:
            found.append(
                Problem("samples_per_shard", f"--samples-per-shard is {self.samples_per_shard}; it starts at 1.")
            )
        if self.resize_shorter < 0:
            found.append(
                Problem("resize_shorter", f"--resize-shorter is {self.resize_shorter}; it is a number of pixels.")
            )
        if self.processes < 1:
            found.append(Problem("processes", f"--processes is {self.processes}; it starts at 1."))
        if not 0 <= self.holdout < 1:
            found.append(Problem("holdout", f"--holdout is {self.holdout}; it must lie between 0 and 1, without 1."))
        if not 0 <= self.part < self.parts:
            says = f"--part {self.part}: of --parts {self.parts} there are 0 to {self.parts - 1}."
            found.append(Problem("part", says))
        if found:
            raise BadRequest(found)
        try:
            dataset = build(
                self.source,
                self.out,
                samples_per_shard=self.samples_per_shard,
                holdout=self.holdout,
                processes=self.processes,
                resize_shorter=self.resize_shorter,
                classes=self.classes,
                allowed=Allowed(**{item.name: getattr(self, item.name) for item in fields(Allowed)}),
                part=self.part,
                parts=self.parts,
            )
        except SourceError as error:
            raise BadRequest.of("source", str(error)) from error
        if dataset:
            tell(dataset, as_json=self.json)
        else:
            says = f"{self.out}: part {self.part} of {self.parts} is done; the last one to end writes dataset.json."
            print(harmless(says))
        return 0


@dataclass(frozen=True, kw_only=True)
class MakeIndex(Verb):
    """Index tars made elsewhere, as they are: beside those of a folder, in the cache for those behind URLs.

    Example: vitrail shards index DIR
    """

    source: tyro.conf.Positional[str]
    """Folder of tars, with or without a folder for each split; a tar, a pattern, a list (.txt); here, or URLs"""
    data: Reading = READING
    processes: int = field(default_factory=cores)  # that work beside each other
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Index, and say what is there."""
        tell(opener(self.data, self.processes).index(self.source), as_json=self.json)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
    """Check every byte and label of the shards against the index, decode every image, and say what the samples are.

    Ends with 1 where something is wrong: bytes or labels that differ, tars missing or damaged, images that cannot be
    decoded, keys that occur twice in a split. Equal images, keys in two splits, unequal or empty classes and unusual
    images are told, and are no fault.

    Example: vitrail shards verify DIR
    """

    source: tyro.conf.Positional[str]
    """Whatever `--data` takes"""
    data: Reading = READING
    processes: int = field(default_factory=cores)  # that work beside each other
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Return 0 if nothing is wrong, else 1."""
        dataset = opener(self.data, self.processes).as_it_lies(self.source)
        report = verify(dataset.splits, dataset.classes, self.processes)
        if self.json:
            print(json.dumps(asdict(report), indent=2))
        else:
            tell_report(report, self.source)
        return 1 if report.problems else 0


@dataclass(frozen=True, kw_only=True)
class Show(Verb):
    """Count and describe a data set.

    Example: vitrail shards show DIR
    """

    source: tyro.conf.Positional[str]
    """Whatever `--data` takes"""
    data: Reading = READING
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Print a table, or JSON for scripts."""
        dataset = opener(self.data).open(self.source)
        shuffle = shuffle_in(dataset)
        tell(dataset, as_json=self.json, more={"shuffle": shuffle._asdict()} if shuffle else {})
        if shuffle and not self.json:
            print(f"shuffle: {shuffle} (for batches of {BATCH} on {VIRTUAL_RANKS} virtual ranks)")
        return 0


VERB: Final[Any] = (
    Annotated[tyro.conf.FlagCreatePairsOff[Build], tyro.conf.subcommand("build")]
    | Annotated[MakeIndex, tyro.conf.subcommand("index")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def opener(reading: Reading, processes: int = 1) -> Opener:
    """Return what opens data.  Raises BadRequest for what is wrong with the flags."""
    if problems := list(reading.problems()):
        raise BadRequest(problems)
    return Opener(reading, lambda text: print(harmless(text), file=sys.stderr), processes)


def shuffle_in(dataset: Dataset) -> Shuffle | None:
    """Return how well DeiT's batches of a data set are shuffled with the window that is the default.

    None where it has no training split, or the labels are not known.
    """
    train = dataset.splits.get("train")
    if train is None or train.known is None:
        return None
    order = Order(shard_sizes=train.shard_sizes, seed=0, batch=BATCH, virtual_ranks=VIRTUAL_RANKS)
    return shuffle_of(order, train.known["label"])


def tell(dataset: Dataset, *, as_json: bool, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Print what is said of a data set: as dataset.json has it and with `more`, or as a table, an account, notes."""
    head = dataset.head()
    if as_json:
        print(json.dumps({**head, **more}, indent=2))
        return
    show(dataset)
    if "source" in head:
        print(harmless(Account(**head["source"])))
    for note in head.get("notes", []):
        print(harmless(f"note: {note}"))


def show(dataset: Dataset) -> None:
    """Print a data set as a table."""
    table = Table(title=plain(f"{dataset.named}: {len(dataset.classes) or 'unknown'} classes"))
    for column in ("split", "samples", "shards", "MB", "smallest class", "largest class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, index in dataset.splits.items():
        row = [name, f"{len(index):,}", str(len(index.shards))]
        if index.known is None:  # tars that are read as they arrive
            row += ["?", "?", "?"]
        else:
            counts = np.bincount(index.known["label"], minlength=len(dataset.classes))
            megabytes = sum(shard.bytes for shard in index.shards) / 1e6
            row += [f"{megabytes:.1f}", str(counts.min()), str(counts.max())]
        table.add_row(*map(plain, row))
    Console().print(table)


def tell_report(report: Report, source: str) -> None:
    """Print what was found: a table of the splits, one of what is worth knowing, and the problems."""
    table = Table()
    for column in ("split", "samples", "smallest class", "largest class", "ratio", "empty classes"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in report.splits.items():
        sizes = (split.smallest_class, split.largest_class)
        row = [f"{split.samples:,}", *map(str, sizes), f"{split.ratio:.1f}", str(split.empty_classes.count)]
        table.add_row(*map(plain, [name, *row]))
    console = Console()
    console.print(table)
    if known := [(where, what, some) for where, what, some in worth_knowing(report) if some.count]:
        table = Table()
        for column in ("where", "worth knowing", "count", "for instance"):
            table.add_column(column, justify="right" if column == "count" else "left")
        for where, what, some in known:
            table.add_row(*map(plain, [where, what, f"{some.count:,}", ", ".join(some.examples)]))
        console.print(table)
    for problem in report.problems:
        print(harmless(problem))
    if not report.problems:
        print(harmless(f"{source}: all {report.samples:,} samples are as the index says."))


def worth_knowing(report: Report) -> Iterator[tuple[str, str, Some]]:
    """Yield what is no problem: where, what, and how many."""
    for name, split in report.splits.items():
        yield name, "classes without a sample", split.empty_classes
        yield name, "images that occurred before, byte for byte", split.same_bytes
        for what, images in sorted(split.unusual.items()):
            yield name, what, images
    for pair in report.pairs:
        first, second = pair.splits
        yield f"{first}, {second}", f"images of {second} that are in {first} too, byte for byte", pair.same_bytes
        yield f"{first}, {second}", "keys in both", pair.same_keys
    yield "all", "images with two labels", report.two_labels
