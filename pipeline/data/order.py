"""The order of a run: which views a virtual rank sees at a step.

A pure function of (seed, epoch, virtual rank, step) and the sizes of the shards; no I/O, no state. The shards
are permuted and laid end to end, the line is turned by a random offset (so every image is as likely as any other
to fall into the part of an epoch that is used) and cut into K equal spans, one a virtual rank. Within a span,
samples are shuffled inside windows. With r repeats, position p of a rank shows copy p mod r of sample p div r.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.randomness import Purpose, generator

Epoch = Literal["views", "images"]
CACHED: Final = 64  # windows kept: one or two for each virtual rank that a process hosts


class Views(NamedTuple):
    """The views of one virtual rank at one step: sample numbers and copies, [batch / K] each.

    `step` and `epoch` are those that the views belong to: in a cyclic order, of the first cycle.
    """

    step: int
    epoch: int
    samples: NDArray[np.int64]
    copies: NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of a run.  `batch` is global; `window` is in samples.

    `epoch="views"` is DeiT's convention: an epoch shows as many views as there are images, so with r repeats a
    r-th of the images. `epoch="images"` shows every image, r times. After `cycle` epochs the views come again.
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

    @property
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

    def views(self, step: int, virtual_rank: int) -> Views:
        """Return what `virtual_rank` sees at `step` of the run."""
        if self.cycle:
            step %= self.cycle * self.steps_per_epoch
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        positions = step_in_epoch * self.rank_batch + np.arange(self.rank_batch)
        in_span, copies = np.divmod(positions, self.repeats)
        windows, in_window = np.divmod(in_span, self.window)
        in_line = np.concatenate(
            [
                window * self.window + self._window(epoch, virtual_rank, int(window))[in_window[windows == window]]
                for window in np.unique(windows)
            ]
        )
        return Views(step, epoch, self._samples(epoch, virtual_rank * self.span + in_line), copies)

    def _samples(self, epoch: int, in_line: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at the given positions of the epoch's line."""
        chosen, sizes = _chosen(self.shard_sizes, self.seed, self.subset)
        line = _line(sizes, self.seed, epoch)
        positions = (in_line + line.offset) % self.num_samples
        shards = np.searchsorted(line.ends, positions, side="right")
        samples = line.first_samples[shards] + positions - line.starts[shards]
        return samples if chosen is None else chosen[samples]

    def _window(self, epoch: int, virtual_rank: int, window: int) -> NDArray[np.int64]:
        size = min(self.window, self.span - window * self.window)
        return _permutation(self.seed, epoch, virtual_rank, window, size)


def order_of(recipe: Recipe, shard_sizes: tuple[int, ...]) -> Order:
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


@lru_cache(maxsize=2)
def _chosen(shard_sizes: tuple[int, ...], seed: int, subset: int) -> tuple[NDArray[np.int64] | None, tuple[int, ...]]:
    """Return the samples of a subset, and how many of them each shard holds."""
    if not subset:
        return None, shard_sizes
    rng = generator(seed, Purpose.SUBSET)
    chosen = np.sort(rng.choice(sum(shard_sizes), subset, replace=False))
    counts = np.diff(np.searchsorted(chosen, np.cumsum((0, *shard_sizes))))
    return chosen, tuple(counts.tolist())


class _Line(NamedTuple):
    """The shards of an epoch, end to end; arrays are [S], in the order of the line."""

    offset: int
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    first_samples: NDArray[np.int64]


@lru_cache(maxsize=2)
def _line(shard_sizes: tuple[int, ...], seed: int, epoch: int) -> _Line:
    rng = generator(seed, Purpose.SHARD_ORDER, epoch=epoch)
    sizes = np.array(shard_sizes, dtype=np.int64)
    shards = rng.permutation(len(sizes))
    ends = np.cumsum(sizes[shards])
    first_samples = np.cumsum(sizes) - sizes
    return _Line(int(rng.integers(sizes.sum())), ends - sizes[shards], ends, first_samples[shards])


@lru_cache(maxsize=CACHED)
def _permutation(seed: int, epoch: int, virtual_rank: int, window: int, size: int) -> NDArray[np.int64]:
    rng = generator(seed, Purpose.WINDOW, epoch=epoch, sample=virtual_rank << 32 | window)
    return rng.permutation(size)
