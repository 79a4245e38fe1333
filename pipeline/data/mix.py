"""Mixup and CutMix within a virtual rank: drawn by (seed, step, virtual rank, copy), done on the device.

Source: timm/data/mixup.py in its `batch` mode, which DeiT used: one λ, or one box, for the batch, and the labels
smoothed and mixed. Three things are ours. A virtual rank, not a process, is the batch. With repeated augmentation it
holds all copies of an image, which DeiT has in other processes: here the views of one copy are mixed with each other
alone, by a λ or a box of theirs. And the partner of a view is drawn, where timm takes the batch in reverse.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Mix
from pipeline.data.boxes import NOTHING, Box, cutmix_box, inside
from pipeline.randomness import Purpose, generator


class Mixing(NamedTuple):
    """How a batch is mixed: λ of view i with 1 - λ of view partner[i].

    Mixup mixes every pixel so. CutMix takes those of a box from the partner: 1 - λ is the box's share of the area. A
    view whose copy has no other in the batch is its own partner, and stays as it is.
    """

    lam: NDArray[np.float32]  # [B]
    boxes: NDArray[np.int64]  # [B, 4] (`pipeline/data/boxes.py`); all zero for Mixup
    partner: NDArray[np.int64]  # [B]


def draw_mixing(
    settings: Mix, *, seed: int, step: int, virtual_rank: int, copies: NDArray[np.int64], size: int
) -> Mixing | None:
    """Return the mixing of a virtual rank's views at a step, by their copies [B]; None where nothing is ever mixed."""
    if not (settings.mixup_alpha or settings.cutmix_alpha):
        return None
    batch = len(copies)
    mixing = Mixing(np.ones(batch, np.float32), np.zeros((batch, 4), np.int64), np.arange(batch))
    for copy in np.unique(copies).tolist():
        rng = generator(seed, Purpose.MIX, epoch=step, sample=virtual_rank, copy=copy)
        (group,) = np.nonzero(copies == copy)
        mixing.lam[group], mixing.boxes[group] = _draw(settings, size, rng)
        # one cycle through the group, in random order: nobody is his own partner
        order = rng.permutation(group)
        mixing.partner[order] = np.roll(order, 1)
    return mixing


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
    """Return mixed images [B, 3, H, W]."""
    if mixing is None:
        return images
    lam, boxes, partner = (torch.from_numpy(part).to(images.device, non_blocking=True) for part in mixing)
    cut = (boxes[:, 2:] > 0).all(1)
    # a view's share of each of its pixels
    share = torch.where(cut, 1, lam).view(-1, 1, 1, 1) * ~inside(boxes, *images.shape[2:])
    return torch.lerp(images[partner], images, share)


def mix_labels(labels: Tensor, mixing: Mixing | None, *, classes: int, smoothing: float) -> Tensor:
    """Return smoothed and mixed targets, float32 [B, classes], for labels int64 [B].  Each row sums to one."""
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + off)
    if mixing is None:
        return targets
    lam, partner = (
        torch.from_numpy(part).to(labels.device, non_blocking=True) for part in (mixing.lam, mixing.partner)
    )
    return torch.lerp(targets[partner], targets, lam[:, None])
