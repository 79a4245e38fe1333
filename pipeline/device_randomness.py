"""Randomness that is drawn on the device: hashes of the 64-bit keys of views (`view_keys`).

Integer arithmetic is exact everywhere, so that a GPU and a CPU see the same numbers.
"""

import torch
from torch import Tensor

from pipeline.randomness import FACTORS, GOLDEN, Purpose


def uniforms(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return float32 [B, count] in [0, 1) for int64 view keys [B], on the keys' device."""
    return (_bits(keys, purpose, count) >> 40 & 0xFFFFFF).float() * 2**-24


def normals(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return standard normal float32 [B, count] for int64 view keys [B], on the keys' device (Box-Muller)."""
    bits = _bits(keys, purpose, count)
    radius = ((bits >> 40 & 0xFFFFFF).float() + 1) * 2**-24  # (0, 1]: its logarithm is finite
    angle = (bits >> 16 & 0xFFFFFF).float() * (2 * torch.pi * 2**-24)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)


def kept_of(keys: Tensor, purpose: Purpose, rate: float, count: int) -> Tensor:
    """Return bool [B, count] for int64 keys [B]: false with a probability of `rate`, to 2^-16."""
    draws = _bits(keys, purpose, -(-count // 4)).view(torch.int16)[:, :count]  # four in each hash
    return draws >= round(rate * 2**16) - 2**15


def derived_keys(keys: Tensor, purpose: Purpose, count: int) -> Tensor:
    """Return int64 [B, count]: for each of the int64 keys [B], keys of so many draws."""
    return _bits(keys, purpose, count)


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
