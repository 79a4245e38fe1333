"""Randomness that is drawn on the device: hashes of the 64-bit keys of views (`view_keys`).

Integer arithmetic is exact everywhere, so that a GPU and a CPU see the same numbers.
"""

import torch
from torch import Tensor

from pipeline.randomness import FACTORS, GOLDEN, Purpose


def uniforms(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return float32 [B, count] in [0, 1) for int64 view keys [B], on the keys' device."""
    return (_bits(keys, purpose, _first(count, keys)) >> 40 & 0xFFFFFF).float() * 2**-24


def normals(keys: Tensor, purpose: Purpose, draws: Tensor) -> Tensor:
    """Return standard normal float32 [B, n]: of each int64 key [B] the draws of these numbers, int64 [n] (Box-Muller).

    On the keys' device.
    """
    bits = _bits(keys, purpose, draws)
    radius = (bits >> 40 & 0xFFFFFF).float().add_(1).mul_(2**-24)  # (0, 1]: its logarithm is finite
    angle = (bits >> 16 & 0xFFFFFF).float().mul_(2 * torch.pi * 2**-24)
    return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_())


def skipping(keys: Tensor, draws: Tensor) -> Tensor:
    """Return keys, int64 [B], whose draw 0 is that of number `draws` [B] of these keys [B], and so on from there."""
    return keys + draws * _signed(GOLDEN)


def kept_of(keys: Tensor, purpose: Purpose, rate: float, count: int) -> Tensor:
    """Return bool [B, count] for int64 keys [B]: false with a probability of `rate`, to 2^-16."""
    draws = _bits(keys, purpose, _first(-(-count // 4), keys)).view(torch.int16)[:, :count]  # four in each hash
    return draws >= round(rate * 2**16) - 2**15


def derived_keys(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return int64 [B, count]: for each of the int64 keys [B], keys of so many draws."""
    return _bits(keys, purpose, _first(count, keys))


def _first(count: int, keys: Tensor) -> Tensor:
    """Return the numbers of the first draws of each key, int64 [count]."""
    return torch.arange(count, device=keys.device)


def _bits(keys: Tensor, purpose: Purpose, draws: Tensor) -> Tensor:
    """Return 64 random bits for each key [B] and draw [n], as int64 [B, n]; torch's int64 wraps as needed."""
    values = keys[:, None] + (draws + (1 + (int(purpose) << 40))) * _signed(GOLDEN)
    for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
        # >> is arithmetic on signed integers: the mask makes it logical
        values ^= (values >> shift).bitwise_and_((1 << 64 - shift) - 1)
        values *= _signed(factor)
    values ^= (values >> 31).bitwise_and_((1 << 33) - 1)
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
