"""Mixup and CutMix of a virtual rank's batch: drawn by (seed, step, virtual rank), done on the device.

Source: timm/data/mixup.py in its `batch` mode, which DeiT used: one λ, or one box, for the batch, and the labels
smoothed and mixed. Two things are ours: the partner of an image is drawn (timm takes the batch in reverse; here
the copies of a repeated image are neighbours, and a drawn partner keeps their pairs apart), and a virtual rank,
not a process, is the batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Mix
from pipeline.randomness import Purpose, generator


class Mixing(NamedTuple):
    """How a batch is mixed: image i is mixed with image partner[i], λ of itself and 1 - λ of the partner.

    `box` (top, bottom, left, right) is where CutMix takes the partner's pixels; None for Mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None
    partner: NDArray[np.int64]  # [B]


def draw_mixing(settings: Mix, *, seed: int, step: int, virtual_rank: int, batch: int, size: int) -> Mixing | None:
    """Return the mixing of a virtual rank's batch at a step, or None where it is left as it is."""
    alphas = settings.mixup_alpha, settings.cutmix_alpha
    rng = generator(seed, Purpose.MIX, epoch=step, sample=virtual_rank)
    mixed, switched = rng.random(2) < (settings.prob, settings.switch_prob)
    cutmix = switched if all(alphas) else bool(settings.cutmix_alpha)
    if not mixed or not any(alphas) or batch < 2:
        return None
    alpha = alphas[int(cutmix)]
    lam = float(rng.beta(alpha, alpha))
    # one cycle through the batch, in random order: nobody is his own partner
    order = rng.permutation(batch)
    partner = np.empty(batch, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    if not cutmix:
        return Mixing(lam, None, partner)
    side = int(size * np.sqrt(1 - lam))
    center = rng.integers(size, size=2)
    top, left = (int(edge) for edge in np.maximum(center - side // 2, 0))
    bottom, right = (int(edge) for edge in np.minimum(center + (side + 1) // 2, size))
    box = top, bottom, left, right
    lam = 1 - (box[1] - box[0]) * (box[3] - box[2]) / size**2  # of the area that is really replaced
    return Mixing(lam, box, partner)


def mix_images(images: Tensor, mixing: Mixing | None) -> Tensor:
    """Return mixed images [B, 3, H, W]."""
    if mixing is None:
        return images
    partner = torch.from_numpy(mixing.partner).to(images.device, non_blocking=True)
    if mixing.box is None:
        return torch.lerp(images[partner], images, mixing.lam)
    top, bottom, left, right = mixing.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed


def mix_labels(labels: Tensor, mixing: Mixing | None, *, classes: int, smoothing: float) -> Tensor:
    """Return smoothed and mixed targets, float32 [B, classes], for labels int64 [B].  Each row sums to one."""
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + off)
    if mixing is None:
        return targets
    partner = torch.from_numpy(mixing.partner).to(labels.device, non_blocking=True)
    return torch.lerp(targets[partner], targets, mixing.lam)
