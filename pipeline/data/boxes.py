"""Boxes of pixels: where a view is erased, and where CutMix takes another's.  A box is (top, left, height, width)."""

import math
from typing import Final

import torch
from numpy.random import Generator
from torch import Tensor

Box = tuple[int, int, int, int]
NOTHING: Final[Box] = (0, 0, 0, 0)


def erase_box(size: int, prob: float, rng: Generator) -> Box:
    """Return the part to erase; all zero where nothing is.

    Source: timm/data/random_erasing.py, one box of 2 to 33 % of the area, aspect ratio 0.3 to 3.3.
    """
    if rng.random() >= prob:
        return NOTHING
    for area_draw, aspect_draw, top_draw, left_draw in rng.random((10, 4)):
        area = size * size * (0.02 + (1 / 3 - 0.02) * area_draw)
        aspect = math.exp(math.log(0.3) * (1 - 2 * aspect_draw))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return int(top_draw * (size - height + 1)), int(left_draw * (size - width + 1)), height, width
    return NOTHING


def cutmix_box(size: int, lam: float, center: tuple[int, int]) -> Box:
    """Return a square of about 1 - λ of the area around a centre (y, x), less what lies outside the image.

    Its side is even before it is cut off, as in timm 0.3.2, which DeiT pins; later ones have odd sides too.
    """
    half = int(size * math.sqrt(1 - lam)) // 2
    (top, bottom), (left, right) = ((max(middle - half, 0), min(middle + half, size)) for middle in center)
    return top, left, bottom - top, right - left


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie in each image's box, bool [B, 1, H, W], for int64 [B, 4]."""
    tops, lefts, heights, widths = (part.view(-1, 1, 1, 1) for part in boxes.unbind(1))
    rows = torch.arange(height, device=boxes.device).view(-1, 1)
    columns = torch.arange(width, device=boxes.device)
    return (rows >= tops) & (rows < tops + heights) & (columns >= lefts) & (columns < lefts + widths)
