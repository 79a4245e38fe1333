"""Batches: what a loader worker makes of a virtual rank's step, and what the device makes of it before the model.

The loader has one iterator for the whole run, from the first step to the last: no work stops at the end of an
epoch, and resuming is starting the iterator at another step. It is never given to `accelerator.prepare`, which
would split it a second time.

Shapes: B images of one virtual rank, S side of the image.
"""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.augment import augment, center, erase_box
from pipeline.config import Model, Recipe
from pipeline.decode import decode
from pipeline.mix import Mixing, draw_mixing, mix_images
from pipeline.order import Order
from pipeline.randomness import Purpose, generator, normals, view_keys
from shards.errors import SampleError, ShardError
from shards.index import Index
from shards.reader import Reader

T = TypeVar("T")
MAX_REPLACEMENTS: Final = 100  # neighbours tried in place of an unusable sample


class Bad(NamedTuple):
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
    place: int  # the step that the views belong to: in a cyclic order, of the first cycle
    images: Tensor  # uint8 [B, S, S, 3]
    labels: NDArray[np.int64]  # [B]
    keys: NDArray[np.int64]  # [B], one a view: the device draws erasing noise from them
    depth_keys: NDArray[np.int64]  # [B], the same of the true epoch: stochastic depth goes on in a cyclic order
    boxes: NDArray[np.int64]  # [B, 4]: top, left, height, width to erase; all zero for nothing
    mixing: Mixing | None
    samples: NDArray[np.int64]  # [B], as the order has them
    copies: NDArray[np.int64]  # [B]
    bad: list[Bad]


class EvalBatch(NamedTuple):
    """One part of an evaluation split: uint8 [B, S, S, 3], labels [B], and what could not be used."""

    part: int
    images: Tensor
    labels: NDArray[np.int64]
    bad: list[Bad]


def order_of(recipe: Recipe, index: Index) -> Order:
    """Return the order of a recipe on a training split."""
    return order_on(recipe, tuple(shard.samples for shard in index.shards))


def order_on(recipe: Recipe, shard_sizes: tuple[int, ...]) -> Order:
    """Return the order of a recipe on shards of these sizes; to count steps, one shard of all images does."""
    return Order(
        shard_sizes=shard_sizes,
        seed=recipe.seed,
        batch=recipe.batch,
        virtual_ranks=recipe.virtual_ranks,
        repeats=recipe.data.repeats,
        window=recipe.data.window,
        epoch=recipe.data.epoch,
        cycle=recipe.distill.store_epochs,
        subset=recipe.data.subset,
    )


class TrainingBatches(Dataset[Batch]):
    """Batches of a training split by (step, virtual rank)."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        self.recipe = recipe
        self.index = index
        self.order = order_of(recipe, index)
        self.reader = Reader(index)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """Read, decode once a sample, and augment once a view: what a virtual rank sees at a step."""
        step, virtual_rank = item
        recipe, size = self.recipe, self.recipe.model.img_size
        place, epoch, samples, copies = self.order.views(step, virtual_rank)
        images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
        labels = np.empty(len(samples), dtype=np.int64)
        boxes = np.zeros((len(samples), 4), dtype=np.int64)
        pixels = images.numpy()
        bad: list[Bad] = []
        last = None
        for slot, (sample, copy) in enumerate(zip(samples.tolist(), copies.tolist(), strict=True)):
            if sample != last:  # the copies of a sample are neighbours: one read and one decode for all
                image, label = self._load(sample, bad)
                last = sample
            pixels[slot] = self.view(image, sample, epoch, copy)
            labels[slot] = label
            if recipe.augment.erase:
                rng = generator(recipe.seed, Purpose.ERASE, epoch=epoch, sample=sample, copy=copy)
                boxes[slot] = erase_box(size, recipe.augment.erase, rng)
        mixing = draw_mixing(
            recipe.mix, seed=recipe.seed, step=place, virtual_rank=virtual_rank, batch=len(samples), size=size
        )
        return Batch(
            step=step,
            virtual_rank=virtual_rank,
            place=place,
            images=images,
            labels=labels,
            keys=view_keys(recipe.seed, epoch, samples, copies),
            depth_keys=view_keys(recipe.seed, step // self.order.steps_per_epoch, samples, copies),
            boxes=boxes,
            mixing=mixing,
            samples=samples,
            copies=copies,
            bad=bad,
        )

    def view(self, image: Image.Image, sample: int, epoch: int, copy: int) -> NDArray[np.uint8]:
        """Return one view of a decoded sample, [S, S, 3]."""
        rng = generator(self.recipe.seed, Purpose.AUGMENT, epoch=epoch, sample=sample, copy=copy)
        return augment(image, self.recipe.model.img_size, self.recipe.augment, rng)

    def _load(self, sample: int, bad: list[Bad]) -> tuple[Image.Image, int]:
        """Return image and label of a sample, or of the next usable one: the same on any hosting."""
        for candidate in range(sample, sample + MAX_REPLACEMENTS):
            candidate %= len(self.index)
            try:
                image = decode(self.reader.read(candidate), self.index.key(candidate))
            except SampleError as error:
                bad.append(Bad(candidate, str(error)))
                continue
            return image, int(self.index.rows["label"][candidate])
        raise ShardError(f"{self.index.folder}: {MAX_REPLACEMENTS} samples in a row cannot be used. {bad[-1].reason}")


class EvaluationBatches(Dataset[EvalBatch]):
    """An evaluation split in parts of `eval.batch` images, which do not depend on the hosting."""

    def __init__(self, recipe: Recipe, index: Index) -> None:
        self.recipe = recipe
        self.index = index
        self.reader = Reader(index)

    def __len__(self) -> int:
        return -(-len(self.index) // self.recipe.eval.batch)

    def __getitem__(self, part: int) -> EvalBatch:
        """Read, decode, resize and crop; a sample that cannot be used is left out and named."""
        first = part * self.recipe.eval.batch
        images, labels, bad = [], [], []
        for sample in range(first, min(first + self.recipe.eval.batch, len(self.index))):
            try:
                image = decode(self.reader.read(sample), self.index.key(sample))
            except SampleError as error:
                bad.append(Bad(sample, str(error)))
                continue
            images.append(center(image, self.recipe.model.img_size, self.recipe.eval.crop_ratio))
            labels.append(int(self.index.rows["label"][sample]))
        size = self.recipe.model.img_size
        stacked = torch.from_numpy(np.stack(images)) if images else torch.empty(0, size, size, 3, dtype=torch.uint8)
        return EvalBatch(part, stacked, np.array(labels, dtype=np.int64), bad)


class Places(Sampler[tuple[int, int]]):
    """The places (step, virtual rank) that a process hosts, in order."""

    def __init__(self, steps: Sequence[int], hosted: range) -> None:
        self.steps, self.hosted = steps, hosted

    def __len__(self) -> int:
        return len(self.steps) * len(self.hosted)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, rank) for step in self.steps for rank in self.hosted)


class Loader(DataLoader[Any]):
    """torch's loader, whose workers end with an iterator that failed.

    They ignore the signal that would end them at exit, which would wait for them; and the error of a worker holds on
    to the iterator whose end would end them.
    """

    def __iter__(self) -> Any:
        return self._ended(super().__iter__())

    @staticmethod
    def _ended(batches: Any) -> Iterator[Any]:
        try:
            yield from batches
        finally:
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()


LOOK_AHEAD: Final = 4  # batches that a loader worker prepares before they are asked for


def load(batches: Dataset[Any], places: Any, *, workers: int, pin_memory: bool) -> Loader:
    """Return the loader of prepared batches: uint8 through shared memory, bounded look-ahead.

    Its workers live as long as one iterator: for training that is the whole run.
    """
    return Loader(
        batches,
        batch_size=None,  # an item is a batch already
        collate_fn=as_it_is,
        sampler=places,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=LOOK_AHEAD if workers else None,
        worker_init_fn=leave_signals_to_the_parent,
    )


def as_it_is(batch: T) -> T:
    """Return the batch; torch's default would turn every array into a tensor, each with a file descriptor."""
    return batch


def leave_signals_to_the_parent(worker: int) -> None:
    """Let a stop request reach only the training process, which finishes its step and needs its loader for that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def as_seen(batch: Batch, model: Model, device: torch.device) -> Tensor:
    """Return a batch as the model sees it, [B, 3, S, S] on the device: normalised, erased and mixed."""
    keys = torch.from_numpy(batch.keys).to(device, non_blocking=True)
    return mix_images(erase(normalize(batch.images, model, device), batch.boxes, keys), batch.mixing)


def normalize(images: Tensor, model: Model, device: torch.device) -> Tensor:
    """Return float32 [B, 3, S, S] on the device, normalised by the model's mean and std, of uint8 [B, S, S, 3]."""
    pixels = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1) * 255
    std = torch.tensor(model.std, device=device).view(3, 1, 1) * 255
    return pixels.sub_(mean).div_(std)


def erase(images: Tensor, boxes: NDArray[np.int64], keys: Tensor) -> Tensor:
    """Fill each image's box with normal noise, drawn by its key; in place, [B, 3, S, S].

    `boxes` are on the host, so that choosing the erased images does not wait for the device. Source: random
    erasing in `pixel` mode, timm/data/random_erasing.py.
    """
    (erased,) = boxes[:, 2].nonzero()
    if not len(erased):
        return images
    _, channels, height, width = images.shape
    device = images.device
    places = torch.from_numpy(boxes[erased]).to(device, non_blocking=True)
    tops, lefts, heights, widths = (part.view(-1, 1, 1) for part in places.unbind(1))
    rows = torch.arange(height, device=device).view(-1, 1)
    columns = torch.arange(width, device=device)
    inside = (rows >= tops) & (rows < tops + heights) & (columns >= lefts) & (columns < lefts + widths)
    chosen = torch.from_numpy(erased).to(device, non_blocking=True)
    noise = normals(keys[chosen], Purpose.ERASE, channels * height * width).view(-1, channels, height, width)
    images[chosen] = torch.where(inside[:, None], noise, images[chosen])
    return images
