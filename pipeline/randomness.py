"""All randomness of a run: counter-based, keyed by what is drawn, never by who draws it.

On the host, `generator` gives a numpy generator for one draw site. On the device, numbers are drawn from the 64-bit
`view_keys` (`pipeline/device_randomness.py`). Nothing here has a state to save: equal integers give equal numbers on
any machine. It does without torch, as `pipeline/data/order.py` does: what only looks at an order starts at once.
"""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a draw is for; each has streams of its own."""

    SHARD_ORDER = 1
    WINDOW = 2
    AUGMENT = 3
    ERASE = 4
    MIX = 5
    VIEW = 6
    DROP_PATH = 7
    INIT = 8
    SUBSET = 9
    SHUFFLE_SCORE = 10
    DROPOUT = 11
    BALANCE = 12


def generator(seed: int, purpose: Purpose, *, epoch: int = 0, sample: int = 0, copy: int = 0) -> np.random.Generator:
    """Return the generator of one draw site."""
    philox = np.random.Philox(key=seed, counter=_counter(purpose, epoch, sample, copy))
    return np.random.Generator(philox)


def _counter(purpose: Purpose, epoch: int, sample: int, copy: int) -> list[int]:
    """Return where the stream of a draw site begins.

    Philox counts its blocks in word 0 of the counter, so streams with other (sample, epoch, purpose, copy) do
    not meet before 2^64 blocks. What is drawn once a virtual rank or a step takes the place of the sample.
    """
    more, copy = divmod(copy, 256)  # of a class-balanced order, whose rare images come often
    return [0, sample, epoch, more << 32 | purpose * 256 + copy]


class Generators:
    """The generators of many draw sites, one after the other: numpy takes a new one's first seed from the system."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=seed)
        self._start = self._philox.state
        self._generator = np.random.Generator(self._philox)

    def at(self, purpose: Purpose, *, epoch: int = 0, sample: int = 0, copy: int = 0) -> np.random.Generator:
        """Return what `generator` does; it is good until the next call."""
        self._start["state"]["counter"][:] = _counter(purpose, epoch, sample, copy)
        self._philox.state = self._start
        return self._generator


GOLDEN: Final = 0x9E3779B97F4A7C15  # splitmix64, Steele, Lea and Flood 2014
FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def view_keys(
    seed: int, epoch: int | NDArray[np.int64], samples: NDArray[np.int64], copies: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return one 64-bit key a view, from which the device draws its erasing noise, stochastic depth and dropout."""
    keys = np.full(len(samples), seed + int(Purpose.VIEW), dtype=np.uint64)
    for part in (np.asarray(epoch, dtype=np.uint64), samples.astype(np.uint64), copies.astype(np.uint64)):
        keys = _scramble(keys + np.uint64(GOLDEN)) ^ part
    return _scramble(keys + np.uint64(GOLDEN)).view(np.int64)


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, on numpy's unsigned integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(FACTORS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(FACTORS[1])
    return values ^ (values >> np.uint64(31))
