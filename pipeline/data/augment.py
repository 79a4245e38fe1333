"""One view of an image: pixels and generator in, pixels out, uint8 [H, W, 3] of RGB; on the CPU, in loader workers.

The crop is timm's (`timm/data/transforms.py`), which DeiT trained with, and so are the usual policies
(`pipeline/data/policy.py`); the draws are ours, from the generator of the view, so that a view is a pure function of
(seed, epoch, sample, copy). Erasing is drawn beside it (`pipeline/data/boxes.py`) and done on the device, on normalised
pixels (`pipeline/data/device.py`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import cv2
from numpy.random import Generator

from pipeline.config import Augment
from pipeline.data.pixels import (
    Image,
    brightness,
    contrast,
    mirror,
    pad,
    resize,
    rotate,
    saturation,
    shear_x,
)  # fmt: skip
from pipeline.data.policy import POLICIES, TIMM


def augment(image: Image, size: int, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image:
    """Return one training view, [size, size, 3] uint8; `done` takes the names of the policy's operations."""
    image = CROPS[settings.crop](image, size, settings, rng)
    if rng.random() < settings.flip:
        image = mirror(image)
    image = POLICIES[settings.policy](image, settings, rng, done)
    if settings.jitter:
        image = color_jitter(image, settings.jitter, rng)
    if settings.rotate or settings.shear:
        image = turned(image, settings, rng)
    return image


def center(image: Image, size: int, crop_ratio: float) -> Image:
    """Return the evaluation view: shorter side to size / crop_ratio (bicubic), centre crop; [size, size, 3]."""
    height, width = image.shape[:2]
    width, height, left, top = center_place(width, height, size, crop_ratio)
    return resize(image, width, height)[top : top + size, left : left + size]


def center_place(width: int, height: int, size: int, crop_ratio: float) -> tuple[int, int, int, int]:
    """Return width and height that an image is resized to, and left and top of its crop (deit/datasets.py)."""
    shorter = int(size / crop_ratio)  # 256 for 224
    # in whole numbers, as torchvision has it; in floats a side is a pixel short now and then
    width, height = (shorter * side // min(width, height) for side in (width, height))
    return width, height, round((width - size) / 2), round((height - size) / 2)


def resized_crop(image: Image, size: int, settings: Augment, rng: Generator) -> Image:
    """Crop a random part of the area and shape, and resize it.  Ten tries, then the centre."""
    height, width = image.shape[:2]
    low, high = (math.log(ratio) for ratio in settings.ratio)
    for _ in range(10):
        area = width * height * rng.uniform(*settings.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            break
    else:
        ratio = min(max(width / height, settings.ratio[0]), settings.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
    return resize(image[top : top + h, left : left + w], size, size, settings.interpolation)


def padded_crop(image: Image, size: int, settings: Augment, rng: Generator) -> Image:
    """Resize if need be, pad with zeros and crop at random: the usual crop for 32 px (deit/datasets.py)."""
    image = pad(resize(image, size, size, settings.interpolation), settings.pad)
    left, top = rng.integers(2 * settings.pad + 1, size=2).tolist()
    return image[top : top + size, left : left + size]


def simple_crop(image: Image, size: int, settings: Augment, rng: Generator) -> Image:
    """Resize the shorter side, pad with a reflection and crop at random: `--src` of deit/augment.py."""
    draws = rng.random(2)
    height, width = (size * side // min(image.shape[:2]) for side in image.shape[:2])
    image = pad(resize(image, width, height, settings.interpolation), settings.pad, cv2.BORDER_REFLECT_101)
    top, left = (int(draw * (side - size + 1)) for draw, side in zip(draws, image.shape[:2], strict=True))
    return image[top : top + size, left : left + size]


def whole(image: Image, size: int, settings: Augment, rng: Generator) -> Image:
    """Resize the whole image, whatever its shape; nothing is drawn."""
    return resize(image, size, size, settings.interpolation)


CROPS: Final[Mapping[str, Callable[[Image, int, Augment, Generator], Image]]] = {
    "resized": resized_crop,
    "padded": padded_crop,
    "simple": simple_crop,
    "whole": whole,
}


def color_jitter(image: Image, strength: float, rng: Generator) -> Image:
    """Change brightness, contrast and saturation, in random order, as torchvision's ColorJitter does."""
    blends = (brightness, contrast, saturation)
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    for which in rng.permutation(3):
        image = blends[which](image, factors[which])
    return image


def turned(image: Image, settings: Augment, rng: Generator) -> Image:
    """Rotate and shear by angles within the settings."""
    rotation, shear = rng.uniform(-1, 1, 2) * (settings.rotate, settings.shear)
    image = rotate(image, rotation, TIMM)
    slope = math.tan(math.radians(shear))
    return shear_x(image, slope, -slope * image.shape[0] / 2, TIMM)  # about the middle of the image, not its upper edge
