"""What the device does to a batch before the model sees it: normalise, erase, mix.

A batch comes in one copy. What is decided about it is decided on the host, which never waits for the device.

Shapes: B images of one virtual rank, S side of the image.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import Channels, Model
from pipeline.data.batch import Batch
from pipeline.data.boxes import Boxes, pixels_in
from pipeline.data.mix import Mixing, mix_images
from pipeline.device_randomness import normals, skipping
from pipeline.randomness import Purpose


class Views(NamedTuple):
    """The views of a batch on the device, and what goes with them."""

    images: Tensor  # uint8 [B, S, S, 3]; or the rows of a frozen prefix, float32 [B, ...]
    labels: Tensor  # int64 [B]
    keys: Tensor  # int64 [B], of erasing noise
    depth_keys: Tensor  # int64 [B], of stochastic depth and dropout
    erased: Boxes
    mixing: Mixing | None  # None where no view is mixed


def on_device(batch: Batch, device: torch.device) -> Views:
    """Return a batch's views on the device, in one copy, which is not waited for."""
    host, records = batch.records.host, batch.records.to(device)
    mixed = (host["lam"] < 1).any()
    return Views(
        images=records.field("row" if batch.has_rows else "pixels"),
        labels=records.field("label"),
        keys=records.field("key"),
        depth_keys=records.field("depth_key"),
        erased=Boxes.counted(records.field("erased"), host["erased"]),
        mixing=Mixing(*(records.field(name) for name in ("lam", "cut", "partner"))) if mixed else None,
    )


def model_input(views: Views, model: Model) -> Tensor:
    """Return views as the model sees them, [B, 3, S, S], channels last: normalised, erased and mixed."""
    return mix_images(erase(normalize(views.images, model), views.erased, views.keys), views.mixing)


def normalize(images: Tensor, model: Model) -> Tensor:
    """Return float32 [B, 3, S, S], channels last, normalised by the model's mean and std, of uint8 [B, S, S, 3]."""
    size = images.shape[2]
    factor, summand = _scale(model.mean, model.std, size, images.device)
    rows = images.flatten(2).float()  # a row's pixels side by side: a long innermost dimension is what is fast
    return torch.addcmul(summand, rows, factor, out=rows).unflatten(2, (size, 3)).permute(0, 3, 1, 2)


@cache
def _scale(mean: Channels | None, std: Channels | None, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what a row of pixels is multiplied with, and what is added to it, [3 S] both: copied to a device once."""
    means, stds = (torch.tensor(of, dtype=torch.float64).repeat(size) for of in (mean, std))
    factor, summand = (1 / 255 / stds).float(), (-means / stds).float()
    return factor.to(device, non_blocking=True), summand.to(device, non_blocking=True)


def erase(images: Tensor, boxes: Boxes, keys: Tensor) -> Tensor:
    """Fill each image's box with normal noise, drawn by its key; in place, [B, 3, S, S].

    The noise of a pixel is that of its channel and place, whatever its box. Source: random erasing in `pixel` mode,
    timm/data/random_erasing.py.
    """
    if not boxes.pixels:
        return images
    _, channels, height, width = images.shape
    views, places = pixels_in(boxes, width)
    planes = torch.arange(channels, device=images.device) * (height * width)
    noise = normals(skipping(keys.index_select(0, views), places), Purpose.ERASE, planes)
    images.permute(0, 2, 3, 1).view(-1, height * width, channels)[views, places] = noise
    return images
