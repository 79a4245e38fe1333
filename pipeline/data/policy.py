"""Policies: what is done to a view once it is cropped.  RandAugment, AutoAugment, 3-Augment, each as its source has it.

`rand` and `auto` are timm's (`timm/data/auto_augment.py`), which DeiT trained with; `rand_tf` is the RandAugment for
TensorFlow, as big_vision has it; `auto_v0` is the AutoAugment of pycls. The draws are ours, from the generator of the
view. Each adds the names of the operations that it did to `done`, for who wants to show them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import cv2
from numpy.random import Generator
from timm.data.auto_augment import auto_augment_policy

from pipeline.config import Augment
from pipeline.data.pixels import (
    Image,
    Warp,
    autocontrast,
    blend_with,
    blur,
    brightness,
    contrast,
    equalize,
    grey,
    invert,
    posterize,
    rotate,
    saturation,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    solarize_add,
    translate,
)  # fmt: skip

# Level is in [-1, 1]: the magnitude over 10, with a random sign that operations without a direction ignore.
Op = Callable[[Image, float], Image]

GREY: Final = (128, 128, 128)
TIMM: Final = Warp(cv2.INTER_CUBIC, (124, 116, 104))  # the mean of ImageNet
PYCLS: Final = Warp(cv2.INTER_LINEAR, GREY)
TF: Final = Warp(cv2.INTER_NEAREST, GREY)


def warping(warp: Warp) -> Mapping[str, Op]:
    """Return the operations that move pixels."""
    return {
        "Rotate": lambda image, level: rotate(image, 30 * level, warp),
        "ShearX": lambda image, level: shear_x(image, 0.3 * level, 0, warp),
        "ShearY": lambda image, level: shear_y(image, 0.3 * level, 0, warp),
        "TranslateXRel": lambda image, level: translate(image, 0.45 * level * image.shape[1], 0, warp),
        "TranslateYRel": lambda image, level: translate(image, 0, 0.45 * level * image.shape[0], warp),
    }


def increasing(blend: Op) -> Op:
    """Return the operation that blends by 1 + 0.9 level, at least 0.1; level 0 changes nothing."""
    return lambda image, level: blend(image, max(0.1, 1 + 0.9 * level))


def enhanced(blend: Op) -> Op:
    """Return the operation that blends by 0.1 at level 0, and by 1.9 at level 1."""
    return lambda image, level: blend(image, 0.1 + 1.8 * abs(level))


# ---- RandAugment -----------------------------------------------------------------------------------------------------

OPS: Final[Mapping[str, Op]] = {
    "AutoContrast": lambda image, _: autocontrast(image),
    "Equalize": lambda image, _: equalize(image),
    "Invert": lambda image, _: invert(image),
    "Rotate": warping(TIMM)["Rotate"],
    "PosterizeIncreasing": lambda image, level: posterize(image, 4 - int(abs(level) * 4)),
    "SolarizeIncreasing": lambda image, level: solarize(image, 256 - min(256, int(abs(level) * 256))),
    "SolarizeAdd": lambda image, level: solarize_add(image, min(128, int(abs(level) * 110))),
    "ColorIncreasing": increasing(saturation),
    "ContrastIncreasing": increasing(contrast),
    "BrightnessIncreasing": increasing(brightness),
    "SharpnessIncreasing": increasing(sharpness),
    **warping(TIMM),  # "Rotate" stays where it is
}
OP_NAMES: Final = tuple(OPS)


def rand_augment(image: Image, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image:
    """RandAugment as timm's `rand-mM-mstdS-inc1`: `rand_ops` operations, each done with probability 1/2."""
    if not settings.rand_ops:
        return image
    for _ in range(settings.rand_ops):
        if rng.random() < settings.rand_prob:
            name = OP_NAMES[int(rng.random() * len(OP_NAMES))]
            level = min(max(rng.normal(settings.rand_magnitude, settings.rand_std) / 10, 0.0), 1.0)
            image = OPS[name](image, level if rng.random() < 0.5 else -level)
            _add(done, name)
    return image


def tf_contrast(image: Image, level: float) -> Image:
    """Blend with a grey of the image's size, not of its mean: TensorFlow's code divides its histogram's sum by 256."""
    height, width = image.shape[:2]
    return blend_with(image, min(255, height * width // 256), 0.1 + 1.8 * abs(level))


def cutout(image: Image, level: float, center: tuple[float, float]) -> Image:
    """Fill a square of side up to 80 around a centre, given in shares of height and width, with grey."""
    half = int(abs(level) * 40)
    y, x = (int(share * side) for share, side in zip(center, image.shape[:2], strict=True))
    image = image.copy()
    image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = GREY
    return image


# Shears are by whole coordinates there, by the middles of rows here, which is half a slope beside it.
TF_OPS: Final[Mapping[str, Op]] = {
    **{name: OPS[name] for name in ("AutoContrast", "Equalize", "Invert", "SolarizeAdd")},
    "Posterize": lambda image, level: posterize(image, int(abs(level) * 4)),
    # a threshold of 256 is 0 in 8 bits: all is inverted
    "Solarize": lambda image, level: solarize(image, int(abs(level) * 256) % 256),
    "Color": enhanced(saturation),
    "Contrast": tf_contrast,
    "Brightness": enhanced(brightness),
    "Sharpness": enhanced(sharpness),
    "Rotate": warping(TF)["Rotate"],
    "ShearX": lambda image, level: shear_x(image, 0.3 * level, -0.15 * level, TF),
    "ShearY": lambda image, level: shear_y(image, 0.3 * level, -0.15 * level, TF),
    "TranslateX": lambda image, level: translate(image, 100 * level, 0, TF),
    "TranslateY": lambda image, level: translate(image, 0, 100 * level, TF),
}
TF_NAMES: Final = (*TF_OPS, "Cutout")


def rand_augment_tf(image: Image, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image:
    """RandAugment as big_vision's `randaug(N, M)`: `rand_ops` operations at one magnitude, each always done."""
    chosen = rng.integers(len(TF_NAMES), size=settings.rand_ops)
    signs = rng.integers(2, size=settings.rand_ops) * 2 - 1
    centers = rng.random((settings.rand_ops, 2))
    for op, sign, (y, x) in zip(chosen, signs, centers, strict=True):
        name, level = TF_NAMES[op], float(sign * settings.rand_magnitude / 10)
        image = cutout(image, level, (y, x)) if name == "Cutout" else TF_OPS[name](image, level)
        _add(done, name)
    return image


# ---- AutoAugment -----------------------------------------------------------------------------------------------------

# The strengths go the other way than RandAugment's.
AUTO_OPS: Final[Mapping[str, Op]] = {
    **OPS,
    "PosterizeOriginal": lambda image, level: posterize(image, 4 + int(abs(level) * 4)),
    "Solarize": lambda image, level: solarize(image, min(256, int(abs(level) * 256))),
    "Color": enhanced(saturation),
    "Contrast": enhanced(contrast),
    "Sharpness": enhanced(sharpness),
}
AUTO_V0_OPS: Final[Mapping[str, Op]] = {
    **AUTO_OPS,
    **warping(PYCLS),
    "Posterize": lambda image, level: posterize(image, max(1, int(abs(level) * 4))),  # never black
}
Pairs = tuple[tuple[tuple[str, float, float], ...], ...]


def pairs(name: str) -> Pairs:
    """Return a policy of timm's: (operation, probability, magnitude), twice a sub-policy."""
    return tuple(tuple((op.name, op.prob, op.magnitude) for op in pair) for pair in auto_augment_policy(name, {}))


AUTO_POLICY: Final = pairs("original")  # ImageNet's, of the paper
AUTO_V0_POLICY: Final = pairs("v0")  # that of its code for TensorFlow


def auto_augment(
    image: Image,
    settings: Augment,
    rng: Generator,
    done: list[str] | None = None,
    *,
    policy: Pairs,
    ops: Mapping[str, Op],
) -> Image:
    """AutoAugment: one of 25 learned pairs of operations, each done with its probability (1805.09501, Table 9)."""
    pair = policy[rng.integers(len(policy))]
    draws, signs = rng.random(2), rng.integers(2, size=2) * 2 - 1
    for (name, prob, magnitude), draw, sign in zip(pair, draws, signs, strict=True):
        if draw < prob:
            image = ops[name](image, sign * magnitude / 10)
            _add(done, name)
    return image


# ---- 3-Augment -------------------------------------------------------------------------------------------------------


def three_augment(image: Image, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image:
    """3-Augment: grey, solarized or blurred, each a third of the time (DeiT III, 2204.07118; deit/augment.py)."""
    which = rng.integers(3)
    _add(done, ("Grayscale", "Solarize", "GaussianBlur")[which])
    if which == 0:
        return grey(image)
    if which == 1:
        return solarize(image)
    return blur(image, rng.uniform(0.1, 2.0))


def _add(done: list[str] | None, name: str) -> None:
    if done is not None:
        done.append(name)


POLICIES: Final[Mapping[str, Callable[[Image, Augment, Generator, list[str] | None], Image]]] = {
    "rand": rand_augment,
    "rand_tf": rand_augment_tf,
    "auto": partial(auto_augment, policy=AUTO_POLICY, ops=AUTO_OPS),
    "auto_v0": partial(auto_augment, policy=AUTO_V0_POLICY, ops=AUTO_V0_OPS),
    "three": three_augment,
}
