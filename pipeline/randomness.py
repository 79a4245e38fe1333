"""All randomness of a run: counter-based, keyed by what is drawn, never by who draws it.

On the host, `generator` gives a numpy generator for one draw site. On the device, `uniforms` and `normals` hash
64-bit view keys, with integer arithmetic that is exact everywhere, so that a GPU and a CPU see the same numbers.
Nothing here has a state to save: equal integers give equal numbers on any machine.
"""

from enum import IntEnum
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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


def generator(seed: int, purpose: Purpose, *, epoch: int = 0, sample: int = 0, copy: int = 0) -> np.random.Generator:
    """Return the generator of one draw site.

    Philox counts its blocks in word 0 of the counter, so streams with other (sample, epoch, purpose, copy) do
    not meet before 2^64 blocks. What is drawn once a virtual rank or a step takes the place of the sample.
    """
    counter = [0, sample, epoch, purpose * 256 + copy]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


GOLDEN: Final = 0x9E3779B97F4A7C15  # splitmix64, Steele, Lea and Flood 2014
FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def view_keys(seed: int, epoch: int, samples: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one 64-bit key a view, from which the device draws its erasing noise and stochastic depth."""
    keys = np.full(len(samples), seed + int(Purpose.VIEW), dtype=np.uint64)
    for part in (np.uint64(epoch), samples.astype(np.uint64), copies.astype(np.uint64)):
        keys = _scramble(keys + np.uint64(GOLDEN)) ^ part
    return _scramble(keys + np.uint64(GOLDEN)).view(np.int64)


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, on numpy's unsigned integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(FACTORS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(FACTORS[1])
    return values ^ (values >> np.uint64(31))


def uniforms(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return float32 [B, count] in [0, 1) for int64 view keys [B], on the keys' device."""
    return (_bits(keys, purpose, count) >> 40 & 0xFFFFFF).float() * 2**-24


def normals(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return standard normal float32 [B, count] for int64 view keys [B], on the keys' device (Box-Muller)."""
    bits = _bits(keys, purpose, count)
    radius = ((bits >> 40 & 0xFFFFFF).float() + 1) * 2**-24  # (0, 1]: its logarithm is finite
    angle = (bits >> 16 & 0xFFFFFF).float() * (2 * torch.pi * 2**-24)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)


def _bits(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return 64 random bits for each key and counter, as int64 [B, count]; torch's int64 wraps as needed."""
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    values = keys[:, None] + (counters + (int(purpose) << 40)) * _signed(GOLDEN)
    for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
        # >> is arithmetic on signed integers: the mask makes it logical
        values = (values ^ (values >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return values ^ (values >> 31 & (1 << 33) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
