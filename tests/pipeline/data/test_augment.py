import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment, random_erasing

from pipeline.config import Augment
from pipeline.data.augment import (
    AUTO_OPS,
    AUTO_POLICY,
    FILL,
    OPS,
    augment,
    center,
    color_jitter,
    erase_box,
    rand_augment,
    three_augment,
    turned,
)  # fmt: skip
from pipeline.randomness import Purpose, generator

NOISE = np.random.Generator(np.random.Philox(key=1))
PHOTO = Image.fromarray(NOISE.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
DEIT = Augment(rand_ops=2, erase=0.25)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 9.0, 10.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_gives_the_pixels_of_timm(
    name: str, magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(PHOTO)
    assert np.array_equal(np.asarray(OPS[name](PHOTO, sign * magnitude / 10)), np.asarray(theirs))


def test_the_operations_are_those_of_timm_with_increasing_severity() -> None:
    assert list(OPS) == auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("name", sorted({name for pair in AUTO_POLICY for name, _, _ in pair}))
@pytest.mark.parametrize("magnitude", [0, 5, 9])
def test_every_operation_of_auto_augment_gives_the_pixels_of_timm(
    name: str, magnitude: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: -value)
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(PHOTO)
    assert np.array_equal(np.asarray(AUTO_OPS[name](PHOTO, -magnitude / 10)), np.asarray(theirs))


def test_auto_augment_has_25_pairs() -> None:
    assert [len(pair) for pair in AUTO_POLICY] == [2] * 25


def test_three_augment_does_each_of_three_a_third_of_the_time() -> None:
    views = [three_augment(PHOTO, DEIT, generator(0, Purpose.AUGMENT, sample=i)) for i in range(300)]
    pixels = [np.asarray(view) for view in views]
    grey = sum(bool((view == view[..., :1]).all()) for view in pixels)
    solarized = sum(np.array_equal(view, np.asarray(ImageOps.solarize(PHOTO))) for view in pixels)
    assert all(70 < count < 130 for count in (grey, solarized, 300 - grey - solarized))


def test_colour_jitter_rotation_and_shear_stay_within_their_limits() -> None:
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    bright = [np.asarray(color_jitter(grey, 0.2, generator(0, Purpose.AUGMENT, sample=i))).mean() for i in range(50)]
    assert 75 < min(bright) < max(bright) < 125
    cross = Image.new("RGB", (41, 41), FILL)
    cross.paste((255, 255, 255), (20, 0, 21, 41))
    settings = Augment(rotate=10.0, shear=10.0)
    views = [np.asarray(turned(cross, settings, generator(0, Purpose.AUGMENT, sample=i))) for i in range(50)]
    # the line goes through the middle still, and its ends move by less than half a side times two tangents
    assert all(view[20, 19:22].max() > 180 for view in views)
    ends = [int(view[1, :, 0].argmax()) for view in views]
    assert 20 - 20 * 0.36 - 1 <= min(ends) < 20 < max(ends) <= 20 + 20 * 0.36 + 1


def test_rand_augment_applies_an_operation_half_of_the_time() -> None:
    changed = 0
    for sample in range(400):
        rng = generator(0, Purpose.AUGMENT, sample=sample)
        changed += not np.array_equal(
            np.asarray(rand_augment(PHOTO, replace(DEIT, rand_ops=1), rng)), np.asarray(PHOTO)
        )
    # half, less the few operations that leave this picture as it is
    assert 150 < changed < 220


@pytest.mark.parametrize("crop", ["resized", "padded", "whole"])
def test_a_view_has_the_size_asked_for_and_depends_on_its_key_alone(crop: str) -> None:
    settings = replace(DEIT, crop=crop)
    views = [augment(PHOTO, 32, settings, generator(0, Purpose.AUGMENT, sample=i)) for i in (1, 2, 1)]
    assert views[0].shape == (32, 32, 3)
    assert views[0].dtype == np.uint8
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])


def test_an_extreme_shape_falls_back_to_the_centre() -> None:
    strip = Image.new("RGB", (400, 4), (9, 9, 9))
    settings = Augment(scale=(1.0, 1.0), flip=0.0)
    view = augment(strip, 8, settings, generator(0, Purpose.AUGMENT))
    assert view.tolist() == [[[9, 9, 9]] * 8] * 8


def test_a_padded_crop_moves_the_image_and_pads_with_zeros() -> None:
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    settings = Augment(crop="padded", pad=4, flip=0.0)
    views = [augment(white, 32, settings, generator(0, Purpose.AUGMENT, sample=i)) for i in range(60)]
    kept = [int((view[..., 0] > 0).sum()) for view in views]
    assert min(kept) >= 28 * 28
    assert len(set(kept)) > 5


def test_the_evaluation_view_equals_torchvision() -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    for size, ratio in ((48, 0.875), (32, 1.0), (60, 0.9)):
        theirs = Compose([Resize(int(size / ratio), InterpolationMode.BICUBIC), CenterCrop(size)])(PHOTO)
        assert np.array_equal(center(PHOTO, size, ratio), np.asarray(theirs))


def test_erased_boxes_have_the_areas_of_timm() -> None:
    ours = [erase_box(64, 0.25, generator(0, Purpose.ERASE, sample=i)) for i in range(4000)]
    import torch

    random.seed(0)
    theirs = random_erasing.RandomErasing(probability=0.25, mode="const", device="cpu")
    areas = []
    for _ in range(4000):
        areas.append(int((theirs(torch.ones(1, 64, 64)) == 0).sum()))
    own = np.array([height * width for _, _, height, width in ours])
    assert np.mean(own > 0) == pytest.approx(0.25, abs=0.03)
    assert own.mean() == pytest.approx(np.mean(areas), rel=0.1)
    assert own[own > 0].min() >= 0.015 * 64 * 64
    assert all(top + height <= 64 and left + width <= 64 for top, left, height, width in ours)
