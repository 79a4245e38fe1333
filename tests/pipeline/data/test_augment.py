from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Pad, Resize

from pipeline.config import Augment
from pipeline.data.augment import augment, center, center_place, color_jitter, turned
from pipeline.data.pixels import resize
from pipeline.data.policy import TIMM
from pipeline.randomness import Purpose, generator
from tests.bench.bench_views import compared, encoded
from tests.photographs import photographs
from tests.reference.inputs import read

VIEWS = read("evalviews")
NOISE = np.random.Generator(np.random.Philox(key=1))
PHOTO = resize(NOISE.integers(0, 256, (12, 16, 3), dtype=np.uint8), 80, 60)
DEIT = Augment(rand_ops=2, erase=0.25)


def test_colour_jitter_rotation_and_shear_stay_within_their_limits() -> None:
    grey = np.full((40, 40, 3), 100, np.uint8)
    bright = [color_jitter(grey, 0.2, generator(0, Purpose.AUGMENT, sample=i)).mean() for i in range(50)]
    assert 75 < min(bright) < max(bright) < 125
    line = np.full((41, 41, 3), TIMM.fill, np.uint8)
    line[:, 20] = 255
    settings = Augment(rotate=10.0, shear=10.0)
    views = [turned(line, settings, generator(0, Purpose.AUGMENT, sample=i)) for i in range(50)]
    # the line goes through the middle still, and its ends move by less than half a side times two tangents
    assert all(view[20, 19:22].max() > 180 for view in views)
    ends = [int(view[1, :, 0].argmax()) for view in views]
    assert 20 - 20 * 0.36 - 1 <= min(ends) < 20 < max(ends) <= 20 + 20 * 0.36 + 1


def beyond(theirs: str) -> set[str]:
    """Return the figures in which our views lie beyond their bounds of timm's, of a policy of this name."""
    # twenty thousand views, of photographs: python tests/bench/bench_views.py --data SOURCE
    rows = compared([encoded(photo) for photo in photographs(100)], copies=4, named=theirs)
    return {row.what for row in rows if not row.apart <= row.bound}


def test_views_are_of_timms_distribution() -> None:
    assert not beyond("rand-m9-mstd0.5-inc1")


def test_views_of_another_strength_and_frequency_are_told_from_ours() -> None:
    found = beyond("rand-m6-p0.2-mstd0.5-inc1")
    assert {"views with no operation", "views with two operations", "Rotate: level", "ShearX: level"} <= found
    assert not [what for what in found if what.startswith(("crop", "mirror"))]


@pytest.mark.parametrize("crop", ["resized", "padded", "simple", "whole"])
def test_a_view_has_the_size_asked_for_and_depends_on_its_key_alone(crop: str) -> None:
    settings = replace(DEIT, crop=crop)
    views = [augment(PHOTO, 32, settings, generator(0, Purpose.AUGMENT, sample=i)) for i in (1, 5, 1)]
    assert views[0].shape == (32, 32, 3)
    assert views[0].dtype == np.uint8
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])


def test_an_extreme_shape_falls_back_to_the_centre() -> None:
    strip = np.full((4, 400, 3), 9, np.uint8)
    settings = Augment(scale=(1.0, 1.0), flip=0.0)
    view = augment(strip, 8, settings, generator(0, Purpose.AUGMENT))
    assert view.tolist() == [[[9, 9, 9]] * 8] * 8


def test_a_padded_crop_moves_the_image_and_pads_with_zeros() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    settings = Augment(crop="padded", pad=4, flip=0.0)
    views = [augment(white, 32, settings, generator(0, Purpose.AUGMENT, sample=i)) for i in range(60)]
    kept = [int((view[..., 0] > 0).sum()) for view in views]
    assert min(kept) >= 28 * 28
    assert len(set(kept)) > 5


def test_a_simple_crop_is_cut_anywhere_from_torchvisions_resized_and_reflected_image() -> None:
    """`--src` of deit/augment.py: the shorter side to the crop's, 4 pixels of reflection, then a random crop."""
    resized = Image.fromarray(resize(PHOTO, 42, 32))
    padded = np.asarray(Pad(4, padding_mode="reflect")(resized))
    theirs = Resize(32, InterpolationMode.BICUBIC)(Image.fromarray(PHOTO))
    assert resized.size == theirs.size
    assert padded.shape == (40, 50, 3)  # of 80 x 60: 42 x 32
    places = {(top, left): padded[top : top + 32, left : left + 32].tobytes() for top in range(9) for left in range(19)}
    settings = Augment(crop="simple", flip=0.0)
    views = [augment(PHOTO, 32, settings, generator(0, Purpose.AUGMENT, sample=i)).tobytes() for i in range(1500)]
    assert set(views) == set(places.values())  # no other place, and each of the 171


def test_the_evaluation_view_is_torchvisions() -> None:
    for size, ratio in ((48, 0.875), (32, 1.0), (60, 0.9)):
        transform = Compose([Resize(int(size / ratio), InterpolationMode.BICUBIC), CenterCrop(size)])
        theirs = np.asarray(transform(Image.fromarray(PHOTO))).astype(int)
        apart = abs(center(PHOTO, size, ratio) - theirs)
        assert apart.max() <= 2
        assert apart.mean() < 0.1


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "columns"])
def test_the_evaluation_view_lies_where_the_official_code_takes_it(name: str) -> None:
    size, ratio = int(name.split("_")[1]), float(name.split("_")[3])
    for width, height, *expected in VIEWS[name]["rows"]:
        assert [*center_place(width, height, size, ratio), size, size] == expected
