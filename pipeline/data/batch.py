"""Batches: what a loader worker makes of a virtual rank's step, and of a part of an evaluation split.

Shapes: B images of one virtual rank, S side of the image.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config import Recipe
from pipeline.data.augment import augment, center, erase_box
from pipeline.data.decode import decode
from pipeline.data.mix import Mixing, draw_mixing
from pipeline.data.order import order_of
from pipeline.randomness import Purpose, generator, view_keys
from shards.errors import SampleError, ShardError
from shards.index import Index
from shards.reader import Reader

MAX_REPLACEMENTS: Final = 100  # neighbours tried instead of an unusable sample


class Unusable(NamedTuple):
    """A sample that could not be used, and why."""

    sample: int
    reason: str


class Batch(NamedTuple):
    """The views of one virtual rank at one step, as the loader hands them over.

    The pixels travel in shared memory. The small arrays are numpy's and travel with the message: a tensor each
    would cost a file descriptor and a round trip.
    """

    step: int
    virtual_rank: int
    order_step: int  # the step that the views belong to: in a cyclic order, of the first cycle
    images: Tensor  # uint8 [B, S, S, 3]
    labels: NDArray[np.int64]  # [B]
    keys: NDArray[np.int64]  # [B], one a view: the device draws erasing noise from them
    depth_keys: NDArray[np.int64]  # [B], the same of the true epoch: stochastic depth goes on in a cyclic order
    boxes: NDArray[np.int64]  # [B, 4]: top, left, height, width to erase; all zero for nothing
    mixing: Mixing | None
    samples: NDArray[np.int64]  # [B], as the order has them
    copies: NDArray[np.int64]  # [B]
    unusable: list[Unusable]


class EvalBatch(NamedTuple):
    """One part of an evaluation split: uint8 [B, S, S, 3], labels [B], and what could not be used."""

    part: int
    images: Tensor
    labels: NDArray[np.int64]
    unusable: list[Unusable]


class TrainingBatches(Dataset[Batch]):
    """Batches of a training split by (step, virtual rank)."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        self.recipe = recipe
        self.index = index
        self.order = order_of(recipe, index.shard_sizes)
        self.reader = Reader(index)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """Read, decode once a sample, and augment once a view: what a virtual rank sees at a step."""
        step, virtual_rank = item
        recipe, size = self.recipe, self.recipe.model.img_size
        order_step, epoch, samples, copies = self.order.views(step, virtual_rank)
        images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
        labels = np.empty(len(samples), dtype=np.int64)
        boxes = np.zeros((len(samples), 4), dtype=np.int64)
        pixels = images.numpy()
        unusable: list[Unusable] = []
        last = None
        for slot, (sample, copy) in enumerate(zip(samples.tolist(), copies.tolist(), strict=True)):
            if sample != last:  # the copies of a sample are neighbours: one read and one decode for all
                image, label = self._load(sample, unusable)
                last = sample
            pixels[slot] = self.view(image, sample, epoch, copy)
            labels[slot] = label
            if recipe.augment.erase:
                rng = generator(recipe.seed, Purpose.ERASE, epoch=epoch, sample=sample, copy=copy)
                boxes[slot] = erase_box(size, recipe.augment.erase, rng)
        mixing = draw_mixing(
            recipe.mix, seed=recipe.seed, step=order_step, virtual_rank=virtual_rank, batch=len(samples), size=size
        )
        return Batch(
            step=step,
            virtual_rank=virtual_rank,
            order_step=order_step,
            images=images,
            labels=labels,
            keys=view_keys(recipe.seed, epoch, samples, copies),
            depth_keys=view_keys(recipe.seed, step // self.order.steps_per_epoch, samples, copies),
            boxes=boxes,
            mixing=mixing,
            samples=samples,
            copies=copies,
            unusable=unusable,
        )

    def view(self, image: Image.Image, sample: int, epoch: int, copy: int) -> NDArray[np.uint8]:
        """Return one view of a decoded sample, [S, S, 3]."""
        rng = generator(self.recipe.seed, Purpose.AUGMENT, epoch=epoch, sample=sample, copy=copy)
        return augment(image, self.recipe.model.img_size, self.recipe.augment, rng)

    def _load(self, sample: int, unusable: list[Unusable]) -> tuple[Image.Image, int]:
        """Return image and label of a sample, or of the next usable one: the same on any hosting."""
        for candidate in range(sample, sample + MAX_REPLACEMENTS):
            candidate %= len(self.index)
            try:
                image = decode(self.reader.read(candidate), self.index.key(candidate))
            except SampleError as error:
                unusable.append(Unusable(candidate, str(error)))
                continue
            return image, int(self.index.rows["label"][candidate])
        raise ShardError(
            f"{self.index.folder}: {MAX_REPLACEMENTS} samples in a row cannot be used. {unusable[-1].reason}"
        )


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
        images, labels, unusable = [], [], []
        for sample in range(first, min(first + self.recipe.eval.batch, len(self.index))):
            try:
                image = decode(self.reader.read(sample), self.index.key(sample))
            except SampleError as error:
                unusable.append(Unusable(sample, str(error)))
                continue
            images.append(center(image, self.recipe.model.img_size, self.recipe.eval.crop_ratio))
            labels.append(int(self.index.rows["label"][sample]))
        size = self.recipe.model.img_size
        stacked = torch.from_numpy(np.stack(images)) if images else torch.empty(0, size, size, 3, dtype=torch.uint8)
        return EvalBatch(part, stacked, np.array(labels, dtype=np.int64), unusable)
