"""Policies: what is done to a view once it is cropped.  RandAugment, AutoAugment, 3-Augment, each as its source has it.

`rand` and `auto` are timm's (`timm/data/auto_augment.py`), which DeiT trained with; `rand_tf` is the RandAugment for
TensorFlow, as big_vision has it; `auto_v0` is the AutoAugment of pycls. The draws are ours, from the generator of the
view. Each adds the names of the operations that it did to `done`, for who wants to show them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data.auto_augment import auto_augment_policy

from pipeline.config import Augment

# Level is in [-1, 1]: the magnitude over 10, with a random sign that operations without a direction ignore.
Op = Callable[[Image.Image, float], Image.Image]


class Warp(NamedTuple):
    """How pixels are found where they move, and what colour is outside the image."""

    resample: Image.Resampling
    fill: tuple[int, int, int]


GREY: Final = (128, 128, 128)
TIMM: Final = Warp(Image.Resampling.BICUBIC, (124, 116, 104))  # the mean of ImageNet
PYCLS: Final = Warp(Image.Resampling.BILINEAR, GREY)
TF: Final = Warp(Image.Resampling.NEAREST, GREY)


def affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp = TIMM) -> Image.Image:
    """Return the image under an affine map, from the place of a pixel to where it is taken from."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=warp.resample, fillcolor=warp.fill)


def rotate(image: Image.Image, degrees: float, warp: Warp = TIMM) -> Image.Image:
    """Return the image turned about its middle."""
    return image.rotate(degrees, resample=warp.resample, fillcolor=warp.fill)


def warping(warp: Warp) -> Mapping[str, Op]:
    """Return the operations that move pixels."""
    return {
        "Rotate": lambda image, level: rotate(image, 30 * level, warp),
        "ShearX": lambda image, level: affine(image, (1, 0.3 * level, 0, 0, 1, 0), warp),
        "ShearY": lambda image, level: affine(image, (1, 0, 0, 0.3 * level, 1, 0), warp),
        "TranslateXRel": lambda image, level: affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0), warp),
        "TranslateYRel": lambda image, level: affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height), warp),
    }


def increasing(enhancer: Callable[[Image.Image], Any]) -> Op:
    """Return the operation that blends by 1 + 0.9 level, at least 0.1; level 0 changes nothing."""
    return lambda image, level: enhancer(image).enhance(max(0.1, 1 + 0.9 * level))


def enhanced(enhancer: Callable[[Image.Image], Any]) -> Op:
    """Return the operation that blends by 0.1 at level 0, and by 1.9 at level 1."""
    return lambda image, level: enhancer(image).enhance(0.1 + 1.8 * abs(level))


def posterize(image: Image.Image, level: float) -> Image.Image:
    """Keep 4 to 0 of the high bits; of 0 bits Pillow makes black, and from version 13 on an error."""
    return ImageOps.posterize(image, 4 - int(abs(level) * 4))


def solarize_add(image: Image.Image, level: float) -> Image.Image:
    """Add up to 110 to what is darker than 128."""
    add = min(128, int(abs(level) * 110))
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


# ---- RandAugment -----------------------------------------------------------------------------------------------------

OPS: Final[Mapping[str, Op]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": warping(TIMM)["Rotate"],
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": lambda image, level: ImageOps.solarize(image, 256 - min(256, int(abs(level) * 256))),
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": increasing(ImageEnhance.Color),
    "ContrastIncreasing": increasing(ImageEnhance.Contrast),
    "BrightnessIncreasing": increasing(ImageEnhance.Brightness),
    "SharpnessIncreasing": increasing(ImageEnhance.Sharpness),
    **warping(TIMM),  # "Rotate" stays where it is
}
OP_NAMES: Final = tuple(OPS)


def rand_augment(image: Image.Image, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image.Image:
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
            _add(done, OP_NAMES[op])
    return image


def tf_contrast(image: Image.Image, level: float) -> Image.Image:
    """Blend with a grey of the image's size, not of its mean: TensorFlow's code divides its histogram's sum by 256."""
    grey = min(255, image.height * image.width // 256)
    return Image.blend(Image.new("RGB", image.size, (grey, grey, grey)), image, 0.1 + 1.8 * abs(level))


def cutout(image: Image.Image, level: float, center: tuple[float, float]) -> Image.Image:
    """Fill a square of side up to 80 around a centre, given in shares of height and width, with grey."""
    half = int(abs(level) * 40)
    y, x = int(center[0] * image.height), int(center[1] * image.width)
    image = image.copy()
    image.paste(GREY, (max(x - half, 0), max(y - half, 0), min(x + half, image.width), min(y + half, image.height)))
    return image


# Shears are by whole coordinates there, by the middles of pixels in Pillow, which is half a slope beside it.
TF_OPS: Final[Mapping[str, Op]] = {
    **{name: OPS[name] for name in ("AutoContrast", "Equalize", "Invert", "SolarizeAdd")},
    "Posterize": lambda image, level: ImageOps.posterize(image, int(abs(level) * 4)),
    # a threshold of 256 is 0 in 8 bits: all is inverted
    "Solarize": lambda image, level: ImageOps.solarize(image, int(abs(level) * 256) % 256),
    "Color": enhanced(ImageEnhance.Color),
    "Contrast": tf_contrast,
    "Brightness": enhanced(ImageEnhance.Brightness),
    "Sharpness": enhanced(ImageEnhance.Sharpness),
    "Rotate": warping(TF)["Rotate"],
    "ShearX": lambda image, level: affine(image, (1, 0.3 * level, -0.15 * level, 0, 1, 0), TF),
    "ShearY": lambda image, level: affine(image, (1, 0, 0, 0.3 * level, 1, -0.15 * level), TF),
    "TranslateX": lambda image, level: affine(image, (1, 0, 100 * level, 0, 1, 0), TF),
    "TranslateY": lambda image, level: affine(image, (1, 0, 0, 0, 1, 100 * level), TF),
}
TF_NAMES: Final = (*TF_OPS, "Cutout")


def rand_augment_tf(
    image: Image.Image, settings: Augment, rng: Generator, done: list[str] | None = None
) -> Image.Image:
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
    "PosterizeOriginal": lambda image, level: ImageOps.posterize(image, 4 + int(abs(level) * 4)),
    "Solarize": lambda image, level: ImageOps.solarize(image, min(256, int(abs(level) * 256))),
    "Color": enhanced(ImageEnhance.Color),
    "Contrast": enhanced(ImageEnhance.Contrast),
    "Sharpness": enhanced(ImageEnhance.Sharpness),
}
AUTO_V0_OPS: Final[Mapping[str, Op]] = {
    **AUTO_OPS,
    **warping(PYCLS),
    "Posterize": lambda image, level: ImageOps.posterize(image, max(1, int(abs(level) * 4))),  # never black
}
Pairs = tuple[tuple[tuple[str, float, float], ...], ...]


def pairs(name: str) -> Pairs:
    """Return a policy of timm's: (operation, probability, magnitude), twice a sub-policy."""
    return tuple(tuple((op.name, op.prob, op.magnitude) for op in pair) for pair in auto_augment_policy(name, {}))


AUTO_POLICY: Final = pairs("original")  # ImageNet's, of the paper
AUTO_V0_POLICY: Final = pairs("v0")  # that of its code for TensorFlow


def auto_augment(
    image: Image.Image,
    settings: Augment,
    rng: Generator,
    done: list[str] | None = None,
    *,
    policy: Pairs,
    ops: Mapping[str, Op],
) -> Image.Image:
    """AutoAugment: one of 25 learned pairs of operations, each done with its probability (1805.09501, Table 9)."""
    pair = policy[rng.integers(len(policy))]
    draws, signs = rng.random(2), rng.integers(2, size=2) * 2 - 1
    for (name, prob, magnitude), draw, sign in zip(pair, draws, signs, strict=True):
        if draw < prob:
            image = ops[name](image, sign * magnitude / 10)
            _add(done, name)
    return image


# ---- 3-Augment -------------------------------------------------------------------------------------------------------


def three_augment(image: Image.Image, settings: Augment, rng: Generator, done: list[str] | None = None) -> Image.Image:
    """3-Augment: grey, solarized or blurred, each a third of the time (DeiT III, 2204.07118; deit/augment.py)."""
    which = rng.integers(3)
    _add(done, ("Grayscale", "Solarize", "GaussianBlur")[which])
    if which == 0:
        return ImageOps.grayscale(image).convert("RGB")
    if which == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


def _add(done: list[str] | None, name: str) -> None:
    if done is not None:
        done.append(name)


POLICIES: Final[Mapping[str, Callable[[Image.Image, Augment, Generator, list[str] | None], Image.Image]]] = {
    "rand": rand_augment,
    "rand_tf": rand_augment_tf,
    "auto": partial(auto_augment, policy=AUTO_POLICY, ops=AUTO_OPS),
    "auto_v0": partial(auto_augment, policy=AUTO_V0_POLICY, ops=AUTO_V0_OPS),
    "three": three_augment,
}
