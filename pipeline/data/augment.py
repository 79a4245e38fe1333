"""One view of an image: RGB image and generator in, RGB image out; on the CPU, in loader workers.

The operations and ranges are timm's (`timm/data/auto_augment.py`, `transforms.py`), which DeiT trained with;
the draws are ours, from the generator of the view, so that a view is a pure function of (seed, epoch, sample,
copy). Erasing is drawn here and done on the device, on normalised pixels (`pipeline/data/device.py`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data.auto_augment import auto_augment_policy

from pipeline.config import Augment

Op = Callable[[Image.Image, float], Image.Image]
FILL: Final = (124, 116, 104)  # the mean of ImageNet, as timm gives it to RandAugment


def augment(image: Image.Image, size: int, settings: Augment, rng: Generator) -> NDArray[np.uint8]:
    """Return one training view, [size, size, 3] uint8."""
    image = CROPS[settings.crop](image, size, settings, rng)
    if rng.random() < settings.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = POLICIES[settings.policy](image, settings, rng)
    if settings.jitter:
        image = color_jitter(image, settings.jitter, rng)
    if settings.rotate or settings.shear:
        image = turned(image, settings, rng)
    return np.asarray(image)


def center(image: Image.Image, size: int, crop_ratio: float) -> NDArray[np.uint8]:
    """Return the evaluation view: shorter side to size / crop_ratio (bicubic), centre crop; [size, size, 3]."""
    shorter = int(size / crop_ratio)  # 256 for 224: deit/datasets.py
    scale = shorter / min(image.size)
    width, height = (shorter if side == min(image.size) else int(side * scale) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def resized_crop(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Crop a random part of the area and shape, and resize it (bicubic).  Ten tries, then the centre."""
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
    return image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)


def padded_crop(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Resize if need be, pad with zeros and crop at random: the usual crop for 32 px (deit/datasets.py)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    left, top = (int(offset) for offset in rng.integers(2 * settings.pad + 1, size=2) - settings.pad)
    return image.crop((left, top, left + size, top + size))  # outside the image, PIL gives zeros


def whole(image: Image.Image, size: int, settings: Augment, rng: Generator) -> Image.Image:
    """Resize the whole image, whatever its shape; nothing is drawn."""
    return image.resize((size, size), Image.Resampling.BICUBIC) if image.size != (size, size) else image


CROPS: Final[Mapping[str, Callable[[Image.Image, int, Augment, Generator], Image.Image]]] = {
    "resized": resized_crop,
    "padded": padded_crop,
    "whole": whole,
}


def rand_augment(image: Image.Image, settings: Augment, rng: Generator) -> Image.Image:
    """RandAugment as timm's `rand-mM-mstdS-inc1`: `rand_ops` operations, each done with probability 1/2."""
    if not settings.rand_ops:
        return image
    chosen = rng.integers(len(OPS), size=settings.rand_ops)
    apply = rng.random(settings.rand_ops) < settings.rand_prob
    magnitudes = rng.normal(settings.rand_magnitude, settings.rand_std, settings.rand_ops)
    signs = rng.integers(2, size=settings.rand_ops) * 2 - 1
    for op, applied, magnitude, sign in zip(chosen, apply, magnitudes, signs, strict=True):
        if applied:
            image = OPS[OP_NAMES[op]](image, float(sign * min(max(magnitude / 10, 0.0), 1.0)))
    return image


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Return the image under an affine map, bicubic, filled with the mean colour."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=FILL
    )


def enhanced(enhancer: Callable[[Image.Image], Any]) -> Op:
    """Return the operation that blends by 1 + 0.9 level, at least 0.1; level 0 changes nothing."""
    return lambda image, level: enhancer(image).enhance(max(0.1, 1 + 0.9 * level))


def posterize(image: Image.Image, level: float) -> Image.Image:
    """Keep 4 to 0 of the high bits; of 0 bits Pillow makes black, and from version 13 on an error."""
    return ImageOps.posterize(image, 4 - int(abs(level) * 4))


def solarize_add(image: Image.Image, level: float) -> Image.Image:
    """Add up to 110 to what is darker than 128."""
    add = min(128, int(abs(level) * 110))
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


# Level is in [-1, 1]: the magnitude over 10, with a random sign that operations without a direction ignore.
OPS: Final[Mapping[str, Op]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, level: image.rotate(30 * level, resample=Image.Resampling.BICUBIC, fillcolor=FILL),
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": lambda image, level: ImageOps.solarize(image, 256 - min(256, int(abs(level) * 256))),
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": enhanced(ImageEnhance.Color),
    "ContrastIncreasing": enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": enhanced(ImageEnhance.Sharpness),
    "ShearX": lambda image, level: affine(image, (1, 0.3 * level, 0, 0, 1, 0)),
    "ShearY": lambda image, level: affine(image, (1, 0, 0, 0.3 * level, 1, 0)),
    "TranslateXRel": lambda image, level: affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "TranslateYRel": lambda image, level: affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}
OP_NAMES: Final = tuple(OPS)

# AutoAugment's own, whose strengths go the other way.
AUTO_OPS: Final[Mapping[str, Op]] = {
    **OPS,
    "PosterizeOriginal": lambda image, level: ImageOps.posterize(image, 4 + int(abs(level) * 4)),
    "Solarize": lambda image, level: ImageOps.solarize(image, min(256, int(abs(level) * 256))),
    "Color": lambda image, level: ImageEnhance.Color(image).enhance(0.1 + 1.8 * abs(level)),
    "Contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * abs(level)),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * abs(level)),
}
# (operation, probability, magnitude), twice a sub-policy: ImageNet's of the paper, as timm has them
AUTO_POLICY: Final = tuple(
    tuple((op.name, op.prob, op.magnitude) for op in pair) for pair in auto_augment_policy("original", {})
)


def auto_augment(image: Image.Image, settings: Augment, rng: Generator) -> Image.Image:
    """AutoAugment: one of 25 learned pairs of operations, each done with its probability (1805.09501, Table 9)."""
    pair = AUTO_POLICY[rng.integers(len(AUTO_POLICY))]
    draws, signs = rng.random(2), rng.integers(2, size=2) * 2 - 1
    for (name, prob, magnitude), draw, sign in zip(pair, draws, signs, strict=True):
        if draw < prob:
            image = AUTO_OPS[name](image, sign * magnitude / 10)
    return image


def three_augment(image: Image.Image, settings: Augment, rng: Generator) -> Image.Image:
    """3-Augment: grey, solarized or blurred, each a third of the time (DeiT III, 2204.07118; deit/augment.py)."""
    which = rng.integers(3)
    if which == 0:
        return ImageOps.grayscale(image).convert("RGB")
    if which == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


POLICIES: Final[Mapping[str, Callable[[Image.Image, Augment, Generator], Image.Image]]] = {
    "rand": rand_augment,
    "auto": auto_augment,
    "three": three_augment,
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
    image = image.rotate(rotation, resample=Image.Resampling.BICUBIC, fillcolor=FILL)
    slope = math.tan(math.radians(shear))
    # about the middle of the image, not its upper edge
    return affine(image, (1, slope, -slope * image.height / 2, 0, 1, 0))


def erase_box(size: int, prob: float, rng: Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the part to erase; all zero where nothing is.

    Source: timm/data/random_erasing.py, one box of 2 to 33 % of the area, aspect ratio 0.3 to 3.3.
    """
    if rng.random() >= prob:
        return 0, 0, 0, 0
    for area_draw, aspect_draw, top_draw, left_draw in rng.random((10, 4)):
        area = size * size * (0.02 + (1 / 3 - 0.02) * area_draw)
        aspect = math.exp(math.log(0.3) * (1 - 2 * aspect_draw))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return int(top_draw * (size - height + 1)), int(left_draw * (size - width + 1)), height, width
    return 0, 0, 0, 0
