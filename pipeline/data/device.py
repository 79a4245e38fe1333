"""What the device does to a batch before the model sees it: normalise, erase, mix.

Shapes: B images of one virtual rank, S side of the image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Model
from pipeline.data.batch import Batch
from pipeline.data.boxes import inside
from pipeline.data.mix import mix_images
from pipeline.device_randomness import normals
from pipeline.randomness import Purpose


def model_input(batch: Batch, model: Model, device: torch.device) -> Tensor:
    """Return a batch as the model sees it, [B, 3, S, S] on the device: normalised, erased and mixed."""
    keys = torch.from_numpy(batch.keys).to(device, non_blocking=True)
    return mix_images(erase(normalize(batch.images, model, device), batch.boxes, keys), batch.mixing)


def normalize(images: Tensor, model: Model, device: torch.device) -> Tensor:
    """Return float32 [B, 3, S, S] on the device, normalised by the model's mean and std, of uint8 [B, S, S, 3]."""
    pixels = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    mean = torch.tensor(model.mean, device=device).view(3, 1, 1) * 255
    std = torch.tensor(model.std, device=device).view(3, 1, 1) * 255
    return pixels.sub_(mean).div_(std)


def erase(images: Tensor, boxes: NDArray[np.int64], keys: Tensor) -> Tensor:
    """Fill each image's box with normal noise, drawn by its key; in place, [B, 3, S, S].

    `boxes` are on the host, so that choosing the erased images does not wait for the device. Source: random
    erasing in `pixel` mode, timm/data/random_erasing.py.
    """
    (erased,) = boxes[:, 2].nonzero()
    if not len(erased):
        return images
    _, channels, height, width = images.shape
    chosen = torch.from_numpy(erased).to(images.device, non_blocking=True)
    chosen_boxes = torch.from_numpy(boxes[erased]).to(images.device, non_blocking=True)
    noise = normals(keys[chosen], Purpose.ERASE, channels * height * width).view(-1, channels, height, width)
    images[chosen] = torch.where(inside(chosen_boxes, height, width), noise, images[chosen])
    return images
