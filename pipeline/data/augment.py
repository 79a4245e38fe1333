"""One view of an image: RGB image and generator in, RGB image out; on the CPU, in loader workers.

The crop is timm's (`timm/data/transforms.py`), which DeiT trained with, and so are the usual policies
(`pipeline/data/policy.py`); the draws are ours, from the generator of the view, so that a view is a pure function of
(seed, epoch, sample, copy). Erasing is drawn beside it (`pipeline/data/boxes.py`) and done on the device, on normalised
pixels (`pipeline/data/device.py`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipeline.config import Augment
from pipeline.data.policy import POLICIES, affine, rotate


def augment(
    image: Image.Image, size: int, settings: Augment, rng: Generator, done: list[str] | None = None
) -> NDArray[np.uint8]:
    """Return one training view, [size, size, 3] uint8; `done` takes the names of the policy's operations."""
    image = CROPS[settings.crop](image, size, settings, rng)
    if rng.random() < settings.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = POLICIES[settings.policy](image, settings, rng, done)
    if settings.jitter:
        image = color_jitter(image, settings.jitter, rng)
    if settings.rotate or settings.shear:
        image = turned(image, settings, rng)
    return np.asarray(image)


def center(image: Image.Image, size: int, crop_ratio: float) -> NDArray[np.uint8]:
    """Return the evaluation view: shorter side to size / crop_ratio (bicubic), centre crop; [size, size, 3]."""
    width, height, left, top = center_place(*image.size, size, crop_ratio)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def center_place(width: int, height: int, size: int, crop_ratio: float) -> tuple[int, int, int, int]:
    """Return width and height that an image is resized to, and left and top of its crop (deit/datasets.py)."""
    shorter = int(size / crop_ratio)  # 256 for 224
    # in whole numbers, as torchvision has it; in floats a side is a pixel short now and then
    width, height = (shorter * side // min(width, height) for side in (width, height))
    return width, height, round((width - size) / 2), round((height - size) / 2)


def resized(image: Image.Image, size: tuple[int, int], settings: Augment) -> Image.Image:
    """Return the image at a width and height.  Bilinear is of four pixels, as TensorFlow and OpenCV have it."""
    if image.size == size:
        return image
    if settings.interpolation == "bicubic":
        return image.resize(size, Image.Resampling.BICUBIC)
    corners = 0, 0, *image.size
    return image.transform(size, Image.Transform.EXTENT, corners, resample=Image.Resampling.BILINEAR)


def resized_crop(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Crop a random part of the area and shape, and resize it.  Ten tries, then the centre."""
    width, height = image.size
    draws = rng.random((10, 4))
    low, high = (math.log(ratio) for ratio in settings.ratio)
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = width * height * (settings.scale[0] + (settings.scale[1] - settings.scale[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1))
            break
    else:
        ratio = min(max(width / height, settings.ratio[0]), settings.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
    return resized(image.crop((left, top, left + w, top + h)), (size, size), settings)


def padded_crop(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Resize if need be, pad with zeros and crop at random: the usual crop for 32 px (deit/datasets.py)."""
    image = resized(image, (size, size), settings)
    left, top = (int(offset) for offset in rng.integers(2 * settings.pad + 1, size=2) - settings.pad)
    return image.crop((left, top, left + size, top + size))  # outside the image, PIL gives zeros


def simple_crop(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Resize the shorter side, pad with a reflection and crop at random: `--src` of deit/augment.py."""
    draws = rng.random(2)
    shorter = min(image.size)
    image = resized(image, (size * image.width // shorter, size * image.height // shorter), settings)
    padding = (settings.pad, settings.pad)
    padded = np.pad(np.asarray(image), (padding, padding, (0, 0)), mode="reflect")
    top, left = (int(draw * (side - size + 1)) for draw, side in zip(draws, padded.shape[:2], strict=True))
    return Image.fromarray(padded[top : top + size, left : left + size])


def whole(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Resize the whole image, whatever its shape; nothing is drawn."""
    return resized(image, (size, size), settings)


CROPS: Final[Mapping[str, Callable[[Image.Image, int, Augment, Generator], Image.Image]]] = {
    "resized": resized_crop,
    "padded": padded_crop,
    "simple": simple_crop,
    "whole": whole,
}


def color_jitter(image: Image.Image, strength: float, rng: Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, as torchvision's ColorJitter does."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    for which in rng.permutation(3):
        image = enhancers[which](image).enhance(factors[which])
    return image


def turned(image: Image.Image, settings: Augment, rng: Generator) -> Image.Image:
    """Rotate and shear by angles within the settings."""
    rotation, shear = rng.uniform(-1, 1, 2) * (settings.rotate, settings.shear)
    image = rotate(image, rotation)
    slope = math.tan(math.radians(shear))
    # about the middle of the image, not its upper edge
    return affine(image, (1, slope, -slope * image.height / 2, 0, 1, 0))
