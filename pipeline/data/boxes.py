"""Boxes of pixels: where a view is erased, and where CutMix takes another's.  A box is (top, left, height, width)."""

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[int, int, int, int]
NOTHING: Final[Box] = (0, 0, 0, 0)


def erase_box(size: int, prob: float, rng: Generator) -> Box:
    """Return the part to erase; all zero where nothing is.

    Source: timm/data/random_erasing.py, one box of 2 to 33 % of the area, aspect ratio 0.3 to 3.3.
    """
    if rng.random() >= prob:
        return NOTHING
    for _ in range(10):
        area = size * size * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return int(rng.random() * (size - height + 1)), int(rng.random() * (size - width + 1)), height, width
    return NOTHING


def cutmix_box(size: int, lam: float, center: tuple[int, int]) -> Box:
    """Return a square of about 1 - λ of the area around a centre (y, x), less what lies outside the image.

    Its side is even before it is cut off, as in timm 0.3.2, which DeiT pins; later ones have odd sides too.
    """
    half = int(size * math.sqrt(1 - lam)) // 2
    (top, bottom), (left, right) = ((max(middle - half, 0), min(middle + half, size)) for middle in center)
    return top, left, bottom - top, right - left


class Boxes(NamedTuple):
    """A box in each view: on the device; and what is counted on the host, so that nothing waits for the device."""

    sides: Tensor  # int64 [B, 4]
    rows: int  # in all boxes
    pixels: int

    @classmethod
    def counted(cls, sides: Tensor, on_host: NDArray[np.int64]) -> "Boxes":
        """Return boxes [B, 4], of which both are given."""
        heights, widths = on_host[:, 2], on_host[:, 3]
        return cls(sides, int(heights.sum()), int((heights * widths).sum()))


def pixels_in(boxes: Boxes, width: int) -> tuple[Tensor, Tensor]:
    """Return of every pixel in a box its view and its place in the image, row by row: int64 [N] both.

    First of every row, then of its pixels: what a pixel takes of its row is looked up, not divided.
    """
    device = boxes.sides.device
    tops, lefts, heights, widths = boxes.sides.unbind(1)
    views = torch.arange(len(tops), device=device).repeat_interleave(heights, output_size=boxes.rows)
    rows = torch.arange(boxes.rows, device=device)
    widths = widths[views]
    # so far they count from the first box's first row, and so do the pixels from the first box's first pixel
    starts = (rows - (heights.cumsum(0) - heights - tops)[views]) * width + lefts[views] - (widths.cumsum(0) - widths)
    row = rows.repeat_interleave(widths, output_size=boxes.pixels)
    return views.index_select(0, row), starts.index_select(0, row).add_(torch.arange(boxes.pixels, device=device))


def within(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return which of `size` places lie in each of B spans, bool [B, size], for int64 [B]."""
    places = torch.arange(size, device=starts.device)
    return (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
