"""The order of a run: which views a virtual rank sees at a step.

A pure function of (seed, epoch, virtual rank, step) and the sizes of the shards; no I/O, no state. The shards
are permuted and laid end to end, the line is turned by a random offset (so every image is as likely as any other
to fall into the part of an epoch that is used) and cut into K equal spans, one a virtual rank. Within a span,
samples are shuffled inside windows, which begin small in the first epoch: a stream that is fresh gives its first
batch when one or two shards a virtual rank are there. With r repeats, position p of a rank shows copy p mod r of
sample p div r.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.randomness import Purpose, generator

Epoch = Literal["views", "images"]
FIRST_WINDOW: Final = 256  # samples of the first window of epoch 0; each one after it is twice as large
CACHED: Final = 64  # windows kept: one or two for each virtual rank that a process hosts
CACHED_LINES: Final = 4  # of two epochs for two orders: a loader in the training process has its own


class Views(NamedTuple):
    """The views of one virtual rank at one step, or several: sample numbers and copies, [steps x batch / K] each.

    `step`, the first, and `epoch` are those that the views belong to: in a cyclic order, of the first cycle.
    """

    step: int
    epoch: int
    samples: NDArray[np.int64]
    copies: NDArray[np.int64]


class Window(NamedTuple):
    """Samples of a span that are shuffled among each other: `size` of them, from `start` on."""

    number: int
    start: int
    size: int


@dataclass(frozen=True, eq=False)  # hashed as the object that it is: the sizes of a million shards would take 16 ms
class Order:
    """The order of a run.  `batch` is global; `window` is in samples.

    `epoch="views"` is DeiT's convention: an epoch shows as many views as there are images, so with r repeats a
    r-th of the images. `epoch="images"` shows every image, r times. After `cycle` epochs the views come again.

    With `labels` it is class-balanced. The line of an epoch is as long as without, and holds each class that there is
    equally often, but for one: images of a rare class several times, and of a frequent one some, others each epoch.
    When an image comes again in an epoch, its copies are counted on, so that no two of its views are the same.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    batch: int
    virtual_ranks: int
    repeats: int = 1
    window: int = 8192
    epoch: Epoch = "views"
    cycle: int = 0  # epochs; 0: no cycle
    subset: int = 0  # samples, chosen by the seed; 0: all
    labels: NDArray[np.int64] | None = None  # [N], where the order is class-balanced

    @cached_property
    def num_samples(self) -> int:
        """How many samples there are to be seen."""
        return self.subset or sum(self.shard_sizes)

    @property
    def rank_batch(self) -> int:
        """Views of one virtual rank in a step."""
        return self.batch // self.virtual_ranks

    @property
    def span(self) -> int:
        """Samples that one virtual rank may see in an epoch; fewer than K samples are left over, others each time."""
        return self.num_samples // self.virtual_ranks

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same for every virtual rank; a last partial batch is dropped."""
        shown = self.span * (self.repeats if self.epoch == "images" else 1)
        return shown // self.rank_batch

    def views(self, step: int, virtual_rank: int, steps: int = 1) -> Views:
        """Return what `virtual_rank` sees at `step` of the run, and at those after it, up to `steps` of one epoch."""
        if self.cycle:
            step %= self.cycle * self.steps_per_epoch
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        positions = step_in_epoch * self.rank_batch + np.arange(steps * self.rank_batch)
        in_span, copies = np.divmod(positions, self.repeats)
        in_line = virtual_rank * self.span + self._shuffled(epoch, virtual_rank, in_span)
        samples, times = self._samples(epoch, in_line)
        return Views(step, epoch, samples, times * self.repeats + copies)

    @property
    def chosen(self) -> NDArray[np.int64] | None:
        """The samples of the subset, None for all."""
        return _chosen(self)[0]

    def window_at(self, epoch: int, position: int) -> Window:
        """Return the window that a position of a span lies in; all spans have the same ones.

        In epoch 0 they are of 256 samples, 512, and so on up to `window`. Later the next epoch's shards are fetched
        ahead, and all are of `window` samples; a span's last one has what is left.
        """
        starts = _growing_starts(self.window) if epoch == 0 else (0,)
        number = bisect_right(starts, position) - 1
        full = (position - starts[number]) // self.window  # of the windows that are as large as they grow
        start = starts[number] + full * self.window
        end = starts[number + 1] if number + 1 < len(starts) else start + self.window
        return Window(number + full, start, min(end, self.span) - start)

    def shards_ahead(self, step: int, virtual_rank: int, epochs: int) -> list[int]:
        """Return the shards of the windows that `virtual_rank` sees at a step and of the next one, in order of use.

        After the last of so many `epochs` there is no next one.
        """
        if self.cycle:
            step %= self.cycle * self.steps_per_epoch
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        shown = -(-self.steps_per_epoch * self.rank_batch // self.repeats)  # positions of a span, of an epoch
        first = step_in_epoch * self.rank_batch // self.repeats
        _, start, size = self.window_at(epoch, ((step_in_epoch + 1) * self.rank_batch - 1) // self.repeats)
        end = start + size
        begin = self.window_at(epoch, first).start
        if end < shown:
            _, start, size = self.window_at(epoch, end)
            return self._shards(epoch, virtual_rank, begin, start + size)
        shards = self._shards(epoch, virtual_rank, begin, end)
        if epoch + 1 < epochs:
            shards += self._shards(epoch + 1, virtual_rank, 0, self.window_at(epoch + 1, 0).size)
        return list(dict.fromkeys(shards))

    def others(self, step: int, virtual_rank: int, slot: int) -> Iterator[int]:
        """Yield other samples for a view whose own cannot be used: those after it in its window, round, then the rest.

        They are the same on any hosting, and so that a node reads no other shards for them, of the same span.
        """
        if self.cycle:
            step %= self.cycle * self.steps_per_epoch
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = (step_in_epoch * self.rank_batch + slot) // self.repeats
        own = window = self.window_at(epoch, position)
        turned = np.roll(np.arange(own.size), own.start - position)[1:]
        while True:
            permutation = _permutation(self.seed, epoch, virtual_rank, window.number, window.size)
            in_line = virtual_rank * self.span + window.start + permutation[turned]
            yield from self._samples(epoch, in_line)[0].tolist()
            end = window.start + window.size
            window = self.window_at(epoch, end if end < self.span else 0)
            if window == own:
                return
            turned = np.arange(window.size)

    def _shards(self, epoch: int, virtual_rank: int, start: int, end: int) -> list[int]:
        """Return the shards that a stretch of a span lies in, in the order of the epoch's line."""
        line = _line(self, epoch)
        positions = (virtual_rank * self.span + np.array([start, end - 1]) + line.offset) % self.num_samples
        first, last = np.searchsorted(line.ends, positions, side="right").tolist()
        if positions[0] <= positions[1]:
            places = np.arange(first, last + 1)
        else:  # around the end of the line
            places = np.concatenate([np.arange(first, len(line.ends)), np.arange(last + 1)])
        shards: list[int] = line.shards[places[line.ends[places] > line.starts[places]]].tolist()
        return shards

    def _shuffled(self, epoch: int, virtual_rank: int, in_span: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of a span, in the shuffle's order, that stand at the given ascending ones."""
        parts = []
        while len(in_span):
            number, start, size = self.window_at(epoch, int(in_span[0]))
            inside = int(np.searchsorted(in_span, start + size))
            permutation = _permutation(self.seed, epoch, virtual_rank, number, size)
            parts.append(start + permutation[in_span[:inside] - start])
            in_span = in_span[inside:]
        return np.concatenate(parts)

    def _samples(self, epoch: int, in_line: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples at the given positions of the epoch's line, and how often each stood in it before."""
        chosen, _ = _chosen(self)
        line = _line(self, epoch)
        positions = (in_line + line.offset) % self.num_samples
        shards = np.searchsorted(line.ends, positions, side="right")
        samples = line.first_samples[shards] + positions - line.starts[shards]
        times = np.zeros_like(samples)
        if self.labels is not None:
            balanced = _balanced(self, epoch)
            places, samples = samples, balanced.samples[samples]
            times = places - balanced.first_places[samples]
        return samples if chosen is None else chosen[samples], times


def order_of(recipe: Recipe, shard_sizes: tuple[int, ...], labels: NDArray[np.integer] | None = None) -> Order:
    """Return the order of a recipe on shards of these sizes; to count steps, one shard of all images does.

    `labels` [N] are those of all samples, which a class-balanced order goes by.
    """
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
        labels=labels.astype(np.int64) if recipe.data.balance and labels is not None else None,
    )


@lru_cache(maxsize=2)
def _chosen(order: Order) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Return the samples of an order's subset, None for all, and how many of them each shard holds."""
    sizes = np.array(order.shard_sizes, dtype=np.int64)
    if not order.subset:
        return None, sizes
    rng = generator(order.seed, Purpose.SUBSET)
    chosen = np.sort(rng.choice(int(sizes.sum()), order.subset, replace=False))
    return chosen, np.diff(np.searchsorted(chosen, np.cumsum((0, *order.shard_sizes))))


class _Balanced(NamedTuple):
    """The samples of an epoch in which classes are balanced, ascending, each as often as it comes: its places [N]."""

    samples: NDArray[np.int64]  # [N], by place; of a subset, their numbers in it
    first_places: NDArray[np.int64]  # of each sample
    sizes: NDArray[np.int64]  # places of each shard


@lru_cache(maxsize=CACHED_LINES)
def _balanced(order: Order, epoch: int) -> _Balanced:
    assert order.labels is not None
    chosen, sizes = _chosen(order)
    labels = order.labels if chosen is None else order.labels[chosen]
    counts = np.bincount(labels)
    rng = generator(order.seed, Purpose.BALANCE, epoch=epoch)
    present = rng.permutation(np.flatnonzero(counts))
    quotas = np.zeros_like(counts)
    quotas[present] = len(labels) // len(present)
    quotas[present[: len(labels) % len(present)]] += 1  # what is left over, to others each epoch
    whole, rest = np.divmod(quotas, np.maximum(counts, 1))
    drawn = rng.permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]  # the samples of each class, in random order
    turn = np.empty_like(by_class)
    turn[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    times = whole[labels] + (turn < rest[labels])
    ends = np.cumsum(times)
    bounds = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(sizes)])]
    return _Balanced(np.repeat(np.arange(len(labels)), times), ends - times, np.diff(bounds))


class _Line(NamedTuple):
    """The shards of an epoch, end to end; arrays are [S], in the order of the line."""

    offset: int
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    shards: NDArray[np.int64]
    first_samples: NDArray[np.int64]


@lru_cache(maxsize=CACHED_LINES)
def _line(order: Order, epoch: int) -> _Line:
    rng = generator(order.seed, Purpose.SHARD_ORDER, epoch=epoch)
    sizes = _chosen(order)[1] if order.labels is None else _balanced(order, epoch).sizes
    shards = rng.permutation(len(sizes))
    ends = np.cumsum(sizes[shards])
    first_samples = np.cumsum(sizes) - sizes
    return _Line(int(rng.integers(sizes.sum())), ends - sizes[shards], ends, shards, first_samples[shards])


@lru_cache
def _growing_starts(window: int) -> tuple[int, ...]:
    """Return where the windows of epoch 0 start that are smaller than `window`, and the first that is not."""
    starts, size = [0], FIRST_WINDOW
    while size < window:
        starts.append(starts[-1] + size)
        size *= 2
    return tuple(starts)


@lru_cache(maxsize=CACHED)
def _permutation(seed: int, epoch: int, virtual_rank: int, window: int, size: int) -> NDArray[np.int64]:
    rng = generator(seed, Purpose.WINDOW, epoch=epoch, sample=virtual_rank << 32 | window)
    return rng.permutation(size)
