"""Batches: what a loader worker makes of a virtual rank's step, and of a part of an evaluation split.

Shapes: B images of one virtual rank, S side of the image.
"""

import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config import Recipe
from pipeline.data.augment import augment, center
from pipeline.data.boxes import erase_box
from pipeline.data.mix import draw_mixing
from pipeline.data.order import Views, order_of
from pipeline.data.record import Records, eval_record, view_record
from pipeline.data.rows import Rows
from pipeline.randomness import Generators, Purpose, view_keys
from shards.decode import decode
from shards.errors import SampleError, ShardError
from shards.index import Index
from shards.reader import Reader

AHEAD: Final = 32  # parts of an evaluation split whose shards are fetched before they are read


class Unusable(NamedTuple):
    """A sample that could not be used, and why."""

    sample: int
    reason: str


class Batch(NamedTuple):
    """The views of one virtual rank at one step, as the loader hands them over.

    What the device needs lies in the records; the rest stays on the host, and travels with the message.
    """

    step: int
    virtual_rank: int
    order_step: int  # the step that the views belong to: in a cyclic order, of the first cycle
    records: Records  # `view_record`s (pipeline/data/record.py)
    samples: NDArray[np.int64]  # [B], as the order has them
    copies: NDArray[np.int64]  # [B]
    unusable: list[Unusable]  # those that were not met before
    replaced: bool  # whether views are of other samples, since their own cannot be used
    seconds: float = 0.0  # that it took to prepare

    @property
    def has_rows(self) -> bool:
        """Whether rows of a frozen prefix stand in the place of pixels: all of them were there."""
        return "row" in (self.records.kind.names or ())

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels [B]."""
        return self.records.host["label"]


class EvalBatch(NamedTuple):
    """One part of an evaluation split, and what could not be used of it."""

    part: int
    records: Records  # `eval_record`s (pipeline/data/record.py)
    unusable: list[Unusable]

    @property
    def images(self) -> Tensor:
        """The images, uint8 [B, S, S, 3]."""
        return self.records.field("pixels")

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels [B]."""
        return self.records.host["label"]


class TrainingBatches(Dataset[Batch]):
    """Batches of a training split by (step, virtual rank)."""

    def __init__(self, recipe: Recipe, index: Index, rows: Rows | None = None) -> None:
        self.recipe = recipe
        self.index = index
        self.rows = rows  # of a frozen prefix: a batch of which all are there is neither read nor decoded
        self.order = order_of(recipe, index.shard_sizes, index.known_labels)
        self.reader = Reader(index)
        self._generators = Generators(recipe.seed)
        self._reasons: dict[int, str] = {}  # why samples are unusable, of those that were met: tried once, named once

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """Return what a virtual rank sees at a step: views that are made of images, or rows that are there."""
        started = time.perf_counter()
        step, virtual_rank = item
        recipe, size = self.recipe, self.recipe.model.img_size
        seen = self.order.views(step, virtual_rank)
        order_step, epoch, samples, copies = seen
        kept = self._kept(samples)
        records = Records.room(len(samples), view_record(size, None if kept is None else kept.shape[1:]))
        views = records.host
        views["key"] = view_keys(recipe.seed, epoch, samples, copies)
        views["depth_key"] = view_keys(recipe.seed, step // self.order.steps_per_epoch, samples, copies)
        unusable: list[Unusable] = []
        if kept is None:
            self._make(views, seen, step, virtual_rank, unusable)
        else:
            views["row"] = kept
            views["label"] = [label_of(self.index, sample, recipe.data.classes) for sample in samples.tolist()]
        views["lam"], views["cut"], views["partner"] = draw_mixing(
            recipe.mix,
            seed=recipe.seed,
            step=order_step,
            virtual_rank=virtual_rank,
            copies=copies % recipe.data.repeats,  # a rare class's images come again, as further copies
            size=size,
        )
        return Batch(
            step=step,
            virtual_rank=virtual_rank,
            order_step=order_step,
            records=records,
            samples=samples,
            copies=copies,
            unusable=unusable,
            replaced=any(sample in self._reasons for sample in samples.tolist()),
            seconds=time.perf_counter() - started,
        )

    def _kept(self, samples: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the rows of samples, where all of them are there."""
        if self.rows is None:
            return None
        rows, there = self.rows.read(samples)
        return rows if there.all() else None

    def _make(
        self, views: NDArray[np.void], seen: Views, step: int, virtual_rank: int, unusable: list[Unusable]
    ) -> None:
        """Read, decode once a sample, and augment once a view, into the records of what a virtual rank sees at a step.

        What is not usable is added to `unusable` where it is met first.
        """
        recipe, size = self.recipe, self.recipe.model.img_size
        _, epoch, samples, copies = seen
        if self.index.cache:
            self.reader.expect(virtual_rank, self.order.shards_ahead(step, virtual_rank, recipe.epochs))
        pixels, labels, boxes = views["pixels"], views["label"], views["erased"]
        last = None
        for slot, (sample, copy) in enumerate(zip(samples.tolist(), copies.tolist(), strict=True)):
            if sample != last:  # the copies of a sample are neighbours: one read and one decode for all
                image, label = self._load(sample, self.order.others(step, virtual_rank, slot), unusable)
                last = sample
            pixels[slot] = self.view(image, sample, epoch, copy)
            labels[slot] = label
            if recipe.augment.erase:
                rng = self._generators.at(Purpose.ERASE, epoch=epoch, sample=sample, copy=copy)
                boxes[slot] = erase_box(size, recipe.augment.erase, rng)

    def view(
        self, image: NDArray[np.uint8], sample: int, epoch: int, copy: int, done: list[str] | None = None
    ) -> NDArray[np.uint8]:
        """Return one view of a decoded sample, [S, S, 3]; `done` takes the names of the policy's operations."""
        rng = self._generators.at(Purpose.AUGMENT, epoch=epoch, sample=sample, copy=copy)
        return augment(image, self.recipe.model.img_size, self.recipe.augment, rng, done)

    def _load(self, sample: int, others: Iterator[int], unusable: list[Unusable]) -> tuple[NDArray[np.uint8], int]:
        """Return image and label of a sample, or of the first usable one of the others.

        What is not usable is added to `unusable` where it is met first. Raises ShardError where none is usable.
        """
        enough = self.recipe.data.allowed_bad(len(self.index)) + 1  # unusable ones to end the run
        for candidate in islice(chain([sample], others), enough):
            if candidate in self._reasons:
                continue
            try:
                content = self.reader.read(candidate)
                image = decode(content, self.index.key(candidate))
            except SampleError as error:
                self._reasons[candidate] = str(error)
                unusable.append(Unusable(candidate, str(error)))
                continue
            return image, label_of(self.index, candidate, self.recipe.data.classes)
        if enough > self.order.span:
            raise ShardError(
                f"{self.index.dataset}: no sample of a virtual rank's whole span can be used. {self._reasons[sample]}"
            )
        return np.zeros((1, 1, 3), np.uint8), 0  # never trained on: what is unusable ends the run at this step


def label_of(index: Index, sample: int, classes: int) -> int:
    """Return the label of a sample that was read.  Raises ShardError for one that the model has no output for."""
    label = int(index.row(sample)["label"])
    if label >= classes:
        raise ShardError(
            f"{index.tar(index.shard_of(sample))}: sample {index.key(sample)!r} has label {label}, of "
            f"--data.classes {classes}."
        )
    return label


class EvaluationBatches(Dataset[EvalBatch]):
    """An evaluation split in parts of `eval.batch` images, which do not depend on the hosting."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        self.recipe = recipe
        self.index = index
        self.reader = Reader(index)

    def __len__(self) -> int:
        return -(-len(self.index) // self.recipe.eval.batch)

    def __getitem__(self, part: int) -> EvalBatch:
        """Read, decode, resize and crop; a sample that cannot be used is skipped and named."""
        first = part * self.recipe.eval.batch
        if self.index.cache:
            last = min(first + AHEAD * self.recipe.eval.batch, len(self.index)) - 1
            self.reader.expect("split", range(self.index.shard_of(first), self.index.shard_of(last) + 1))
        samples = range(first, min(first + self.recipe.eval.batch, len(self.index)))
        records = Records.room(len(samples), eval_record(self.recipe.model.img_size))
        images, unusable, used = records.host, [], 0
        for sample in samples:
            try:
                content = self.reader.read(sample)
                image = decode(content, self.index.key(sample))
            except SampleError as error:
                unusable.append(Unusable(sample, str(error)))
                continue
            images["pixels"][used] = center(image, self.recipe.model.img_size, self.recipe.eval.crop_ratio)
            images["label"][used] = label_of(self.index, sample, self.recipe.data.classes)
            images["sample"][used] = sample
            used += 1
        return EvalBatch(part, records.first(used), unusable)
