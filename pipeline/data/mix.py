"""Mixup and CutMix within a virtual rank: drawn by (seed, step, virtual rank, copy), done on the device.

Source: timm/data/mixup.py in its `batch` mode, which DeiT used: one λ, or one box, for the batch, and the labels
smoothed and mixed. Three things are ours. A virtual rank, not a process, is the batch. With repeated augmentation it
holds all copies of an image, which DeiT has in other processes: here the views of one copy are mixed with each other
alone, by a λ or a box of theirs. And the partner of a view is drawn, where timm takes the batch in reverse.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Mix
from pipeline.data.boxes import NOTHING, Box, cutmix_box, within
from pipeline.randomness import Purpose, generator

BAND: Final = 14  # rows that a CPU mixes at a time: what is set aside of a batch stays in the cache


class Mixing(NamedTuple):
    """How a batch is mixed: λ of view i with 1 - λ of view partner[i].  On the host as it is drawn, or on a device.

    Mixup mixes every pixel so. CutMix takes those of a box from the partner: 1 - λ is the box's share of the area. A
    view whose copy has no other in the batch is its own partner, and stays as it is.
    """

    lam: Tensor  # float32 [B]
    boxes: Tensor  # int64 [B, 4] (`pipeline/data/boxes.py`); all zero for Mixup
    partner: Tensor  # int64 [B]


def draw_mixing(
    settings: Mix, *, seed: int, step: int, virtual_rank: int, copies: NDArray[np.int64], size: int
) -> Mixing:
    """Return the mixing of a virtual rank's views at a step, by their copies [B]; λ is 1 where nothing is mixed."""
    batch = len(copies)
    lam, boxes, partner = np.ones(batch, np.float32), np.zeros((batch, 4), np.int64), np.arange(batch)
    for copy in np.unique(copies).tolist() if settings.mixup_alpha or settings.cutmix_alpha else ():
        rng = generator(seed, Purpose.MIX, epoch=step, sample=virtual_rank, copy=copy)
        (group,) = np.nonzero(copies == copy)
        lam[group], boxes[group] = _draw(settings, size, rng)
        # one cycle through the group, in random order: nobody is his own partner
        order = rng.permutation(group)
        partner[order] = np.roll(order, 1)
    return Mixing(*(torch.from_numpy(part) for part in (lam, boxes, partner)))


def _draw(settings: Mix, size: int, rng: Generator) -> tuple[float, Box]:
    """Return λ and the box of the views that are mixed alike."""
    alphas = settings.mixup_alpha, settings.cutmix_alpha
    mixed, switched = rng.random(2) < (settings.prob, settings.switch_prob)
    if not mixed:
        return 1.0, NOTHING
    cutmix = switched if all(alphas) else bool(settings.cutmix_alpha)
    alpha = alphas[int(cutmix)]
    lam = float(rng.beta(alpha, alpha))
    if not cutmix:
        return lam, NOTHING
    y, x = rng.integers(size, size=2).tolist()
    box = cutmix_box(size, lam, (y, x))
    return 1 - box[2] * box[3] / size**2, box  # of the area that is really replaced


def mix_images(images: Tensor, mixing: Mixing | None) -> Tensor:
    """Mix images [B, 3, H, W], channels last, in place, and return them.

    What a pixel takes of the partner's is a product of its row's share and its column's: 1 - λ and 1 for Mixup, and
    for CutMix whether they lie in the box. A CPU, to which memory costs more than a launch, goes band by band of rows,
    so that there is never a second batch.
    """
    if mixing is None:
        return images
    _, channels, height, width = images.shape
    tops, lefts, heights, widths = mixing.boxes.unbind(1)
    cut = (heights > 0)[:, None]
    of_rows = torch.where(cut, within(tops, heights, height), 1 - mixing.lam[:, None])[:, :, None]
    of_columns = torch.where(cut, within(lefts, widths, width), 1.0).repeat_interleave(channels, 1)[:, None]
    rows = images.permute(0, 2, 3, 1).view(-1, height, width * channels)
    in_band = BAND if images.device.type == "cpu" else height
    for band, shares in zip(rows.split(in_band, 1), of_rows.split(in_band, 1), strict=True):
        band.lerp_(band.index_select(0, mixing.partner), shares * of_columns)
    return images


def mix_labels(labels: Tensor, mixing: Mixing | None, *, classes: int, smoothing: float) -> Tensor:
    """Return smoothed and mixed targets, float32 [B, classes], for labels int64 [B].  Each row sums to one."""
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + off)
    if mixing is None:
        return targets
    return torch.lerp(targets[mixing.partner], targets, mixing.lam[:, None])
