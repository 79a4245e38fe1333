"""How well an order shuffles: the classes in its batches, against those in batches that are drawn at random.

A batch overlaps with its data set by the sum, over the classes, of the smaller of two shares: the batch's and the data
set's. 1 is the same mixture of classes, 0 no class in common. The score is the mean overlap of an order's global
batches over that of batches drawn at random, of as many samples, and 1 where the order's overlap more. Shards in which
samples lie mixed score 1 with any window; those that are sorted by class need windows that reach over many classes.
"""

from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import Order
from pipeline.randomness import Purpose, generator

ENOUGH: Final = 0.8  # a lower score is worth a word
BATCHES: Final = 16  # that are looked at, at most
PARTS: Final = 512  # of virtual ranks, in all of them together: each costs the permutation of a window
COUNTED: Final = 1 << 20  # samples at most whose labels are counted, evenly spread


class Shuffle(NamedTuple):
    """How well an order shuffles, and the window that would do: its own, where the score is high enough."""

    score: float
    window: int
    enough: int

    def __str__(self) -> str:
        said = f"{self.score:.2f} of a random draw's mixture of classes, with --data.window {self.window}"
        if self.enough == self.window:
            return said
        return f"{said}: the shards are sorted by class, --data.window {self.enough} would do"


def shuffle_of(order: Order, labels: NDArray[Any]) -> Shuffle:
    """Return how well an order shuffles samples with these labels [N]; windows twice as large are tried until one does.

    One as large as a span always does: every batch has a share of every span.
    """
    score, enough = shuffle_score(order, labels), order.window
    found = score
    while found < ENOUGH and enough < order.span:
        enough = min(2 * enough, order.span)
        found = shuffle_score(replace(order, window=enough), labels)
    return Shuffle(score, order.window, enough)


def shuffle_score(order: Order, labels: NDArray[Any]) -> float:
    """Return the score of an order, of batches that are spread over epoch 1; where one batch shows all, it is 1."""
    order = replace(order, cycle=0)  # the first epoch's windows begin small
    if not order.steps_per_epoch:
        return 1.0
    counted = np.bincount(labels[:: -(-len(labels) // COUNTED)])
    shares = counted / counted.sum()
    rng = generator(order.seed, Purpose.SHUFFLE_SCORE)
    count = min(BATCHES, max(1, PARTS // order.virtual_ranks), order.steps_per_epoch)
    ordered, drawn = [], []
    for step in order.steps_per_epoch + np.arange(count) * order.steps_per_epoch // count:
        views = [order.views(int(step), rank).samples for rank in range(order.virtual_ranks)]
        samples = np.unique(np.concatenate(views))
        ordered.append(_overlap(labels[samples], shares))
        drawn.append(_overlap(labels[rng.choice(len(labels), len(samples), replace=False)], shares))
    return min(1.0, sum(ordered) / sum(drawn))


def _overlap(labels: NDArray[Any], shares: NDArray[np.float64]) -> float:
    """Return by how much the classes of a batch overlap with those of its data set."""
    counts = np.bincount(labels, minlength=len(shares))[: len(shares)]
    return float(np.minimum(counts / len(labels), shares).sum())
