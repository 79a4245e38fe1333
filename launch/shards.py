"""`vitrail shards`: build, index, verify and show shards."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from launch.verb import Json, Verb
from shards.build import build
from shards.dataset import HEAD, Dataset, index_dataset, read_dataset, verify_split
from shards.errors import BadRequest, Problem, SourceError


@dataclass(frozen=True, kw_only=True)
class Build(Verb):
    """Build shards from images: OUT/<split>/*.tar, the index, and OUT/dataset.json."""

    source: tyro.conf.Positional[str]
    """Folder of class folders (train/, val/, test/ above them or not), a zip of one, `digits`, `torchvision:NAME`"""
    out: tyro.conf.Positional[Path]
    """Folder to write"""
    samples_per_shard: int = 1000  # images a tar
    holdout: float = 0.0  # share of the images to set aside as `val`, for a source with one split
    classes: tuple[str, ...] = ()  # only these, in this order; all, if none is named
    processes: int = os.cpu_count() or 1  # that work beside each other
    parts: int = 1  # jobs beside each other, on one file system
    part: int = 0  # the one that this is, from 0

    def __call__(self) -> int:
        """Build, and say what came out."""
        found = []
        if self.samples_per_shard < 1:
            found.append(
                Problem("samples_per_shard", f"--samples-per-shard is {self.samples_per_shard}; it starts at 1.")
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
                classes=self.classes,
                part=self.part,
                parts=self.parts,
            )
        except SourceError as error:
            raise BadRequest.of("source", str(error)) from error
        if dataset:
            show(dataset)
        else:
            print(f"{self.out}: part {self.part} of {self.parts} is done; the last one to end writes dataset.json.")
        return 0


@dataclass(frozen=True, kw_only=True)
class MakeIndex(Verb):
    """Index tars made elsewhere, DIR/<split>/*.tar, as they are."""

    folder: tyro.conf.Positional[Path]
    processes: int = os.cpu_count() or 1  # that work beside each other

    def __call__(self) -> int:
        """Index, and say what is there."""
        show(index_dataset(self.folder, self.processes))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
    """Check every byte of the shards against the index."""

    folder: tyro.conf.Positional[Path]
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Return 0 if all is well, else 1."""
        dataset = read_dataset(self.folder)
        found = [problem for index in dataset.splits.values() for problem in verify_split(index)]
        samples = sum(len(index) for index in dataset.splits.values())
        if self.json:
            print(json.dumps({"samples": samples, "problems": found}))
        else:
            print("\n".join(found) or f"{self.folder}: all {samples:,} samples are as the index says.")
        return 1 if found else 0


@dataclass(frozen=True, kw_only=True)
class Show(Verb):
    """Count and describe a data set."""

    folder: tyro.conf.Positional[Path]
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Print a table, or JSON for scripts."""
        dataset = read_dataset(self.folder)
        if self.json:
            print((self.folder / HEAD).read_text(), end="")
        else:
            show(dataset)
        return 0


VERB: Final[Any] = (
    Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[MakeIndex, tyro.conf.subcommand("index")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def show(dataset: Dataset) -> None:
    """Print a data set as a table."""
    table = Table(title=f"{dataset.folder}: {len(dataset.classes)} classes")
    for column in ("split", "samples", "shards", "MB", "smallest class", "largest class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, index in dataset.splits.items():
        counts = np.bincount(index.rows["label"], minlength=len(dataset.classes))
        megabytes = sum(shard.bytes for shard in index.shards) / 1e6
        row = (
            f"{len(index):,}",
            str(len(index.shards)),
            f"{megabytes:.1f}",
            str(counts.min()),
            str(counts.max()),
        )
        table.add_row(name, *row)
    Console().print(table)
