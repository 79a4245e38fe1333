"""Operations on pixels: as timm and Pillow have them, within the bounds of tests/bench/bench_views.py."""

import os
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional

from pipeline.data import pixels
from pipeline.data.policy import AUTO_OPS, AUTO_V0_OPS, OPS, PYCLS, TIMM
from pipeline.data.version import SAME_PIXELS
from tests.bench.bench_views import BOUNDS, off, pixels_apart
from tests.photographs import photographs


def compare(name: str, *arguments: Any) -> None:
    """Compare an operation with timm's on 100 photographs, over its whole range, in both directions."""
    apart = pixels_apart(name, photographs(100, 128), *arguments)
    assert apart.mean <= BOUNDS[name].mean
    assert apart.percentile_99 <= BOUNDS[name].percentile_99


@pytest.mark.parametrize("name", OPS)
def test_every_operation_gives_the_pixels_of_timm(name: str) -> None:
    compare(name)


@pytest.mark.parametrize("name", sorted({*AUTO_OPS} - {*OPS}))
def test_every_operation_of_auto_augment_gives_the_pixels_of_timm(name: str) -> None:
    compare(name, AUTO_OPS)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_every_bilinear_operation_gives_the_pixels_of_timm(name: str) -> None:
    compare(name, AUTO_V0_OPS, PYCLS.fill, Image.Resampling.BILINEAR)


SHAPES = [(300, 400), (500, 375), (100, 80), (1, 1), (1, 90), (90, 1), (2, 700), (224, 224), (7, 5), (1500, 30)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (1, 1), (448, 3)])
def test_a_resized_image_is_within_a_level_of_pillows(shape: tuple[int, int], size: tuple[int, int]) -> None:
    height, width = shape
    image = np.asarray(Image.fromarray(photographs(1)[0]).resize((width, height)))
    ours = pixels.resize(image.copy(), *size)
    assert ours.shape == (*size[::-1], 3)
    apart = off(ours, Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    assert apart.mean() < 0.5
    assert apart.max() <= 3


def test_a_part_of_an_image_is_resized_as_a_copy_of_it() -> None:
    photo = photographs(1)[0]
    part = photo[10:150, 30:190]
    for method in ("bicubic", "bilinear"):
        assert np.array_equal(pixels.resize(part, 64, 48, method), pixels.resize(part.copy(), 64, 48, method))


def test_a_bilinear_resize_takes_the_four_nearest_pixels() -> None:
    # as torch without antialias; Pillow and TensorFlow cut off what is behind the point
    photo = photographs(1)[0]
    for size in (24, 60, 300):
        ours = pixels.resize(photo, size, size, "bilinear").astype(float)
        planes = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
        theirs = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear", align_corners=False)[0]
        assert abs(ours - theirs.permute(1, 2, 0).numpy()).max() < 1.001


def test_mirror_grey_and_blur_are_pillows() -> None:
    for photo in photographs(10):
        image = Image.fromarray(photo)
        assert not off(pixels.mirror(photo), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).any()
        assert off(pixels.grey(photo), image.convert("L").convert("RGB")).max() <= 1
        for sigma in (0.1, 0.7, 1.3, 2.0):
            apart = off(pixels.blur(photo, sigma), image.filter(ImageFilter.GaussianBlur(sigma)))
            assert apart.mean() < 0.6  # Pillow rounds six times
            assert apart[8:-8, 8:-8].max() <= 3  # and takes what is beyond the border from a blurred one


@pytest.mark.parametrize(
    ("x", "y"), [(0, 0), (5, 0), (-7.3, 0), (0, 0.5), (0, -0.5), (240, 0), (0, -500.2), (3.6, 2.2)]
)
def test_a_translation_moves_pixels_and_fills_the_rest(x: float, y: float) -> None:
    photo = photographs(1)[0]
    moved = pixels.translate(photo, x, y, TIMM)
    theirs = Image.fromarray(photo).transform(
        photo.shape[:2], Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BICUBIC, fillcolor=TIMM.fill
    )
    assert off(moved, theirs).mean() < 0.1
    assert np.array_equal((moved == TIMM.fill).all(2), (np.asarray(theirs) == TIMM.fill).all(2))


@pytest.mark.parametrize("slope", [0.0, 0.05, -0.3, 0.8])
@pytest.mark.parametrize("shift", [0.0, -20.0, 300.0])
def test_a_shear_fills_what_comes_from_outside(slope: float, shift: float) -> None:
    photo = photographs(1)[0]
    for warp, resample in ((TIMM, Image.Resampling.BICUBIC), (pixels.Warp(cv2.INTER_NEAREST, TIMM.fill), 0)):
        theirs = Image.fromarray(photo).transform(
            photo.shape[:2], Image.Transform.AFFINE, (1, slope, shift, 0, 1, 0), resample, fillcolor=TIMM.fill
        )
        ours = pixels.shear_x(photo, slope, shift, warp)
        filled = [(np.asarray(image) == TIMM.fill).all(2) for image in (ours, theirs)]
        assert (filled[0] != filled[1]).mean() < 0.004  # places within a sixteenth of a pixel from the border
        turned = pixels.shear_y(photo.transpose(1, 0, 2).copy(), slope, shift, warp)
        assert np.array_equal(turned.transpose(1, 0, 2), ours)


def test_values_beyond_the_range_are_cut_off() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert pixels.solarize_add(ramp, 110)[7, 15].tolist() == [237] * 3
    assert pixels.brightness(ramp, 1.9).max() == 255
    assert pixels.contrast(ramp, 1.9).min() == 0
    assert pixels.posterize(ramp, 0).max() == 0


@pytest.mark.parametrize("value", [0, 77, 255])
def test_operations_keep_a_flat_image_flat(value: int) -> None:
    flat = np.full((5, 4, 3), value, np.uint8)
    for operation in (pixels.autocontrast, pixels.equalize):
        assert np.array_equal(operation(flat), flat)
    for blend in (pixels.sharpness, pixels.saturation, pixels.contrast):
        for factor in (0.1, 1.0, 1.9):
            assert np.array_equal(blend(flat, factor), flat)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
@pytest.mark.parametrize("name", OPS)
def test_operations_take_images_of_a_few_pixels(shape: tuple[int, int], name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for level in (-1.0, 0.0, 1.0):
        assert OPS[name](image, level).shape == image.shape


def test_torchvision_agrees_on_the_strength_of_a_saturation() -> None:
    photo = photographs(1)[0]
    theirs = functional.adjust_saturation(torch.from_numpy(photo).permute(2, 0, 1), 1.5).permute(1, 2, 0).numpy()
    assert off(pixels.saturation(photo, 1.5), theirs).mean() < 0.6


HASH = """
import hashlib, sys
import cv2, torch
threads = int(sys.argv[1])
cv2.setNumThreads(threads)
torch.set_num_threads(threads)
from dataclasses import replace
from pipeline.config import Augment
from pipeline.data.augment import augment, center
from pipeline.randomness import Purpose, generator
from tests.photographs import photographs
digest = hashlib.sha256()
for settings in (
    Augment(rand_ops=2, jitter=0.3, rotate=10.0, shear=10.0),
    Augment(policy="auto_v0", interpolation="bilinear"),
    Augment(policy="rand_tf", rand_ops=2, crop="simple"),
    Augment(policy="three", crop="whole"),
):
    for number, photo in enumerate(photographs(120, 180)):
        digest.update(augment(photo, 160, settings, generator(0, Purpose.AUGMENT, sample=number)).tobytes())
        digest.update(center(photo, 96, 0.875).tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""


def hashed(threads: int, **environment: str) -> tuple[str, str]:
    """Return what another process computes with, and the hash of its views."""
    program = [sys.executable, "-c", HASH, str(threads)]
    found = subprocess.run(program, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert "OPENCV" not in found.stderr  # it knows the switch
    capability, digest = found.stdout.split()
    return capability, digest


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in SAME_PIXELS, reason="this processor has no AVX2")
def test_views_are_equal_with_several_threads_and_on_processors_with_avx2_and_with_avx512() -> None:
    capability, digest = hashed(1)
    assert hashed(2) == (capability, digest)
    # what one with AVX2 alone does: OpenCV's own switch, and torch's
    without = hashed(1, ATEN_CPU_CAPABILITY="avx2", OPENCV_CPU_DISABLE="AVX512-SKX")
    assert without == ("AVX2", digest)
