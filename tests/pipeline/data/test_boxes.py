"""Boxes: erasing's by the areas and shapes of timm, CutMix's by those of the version that DeiT pins."""

import random

import numpy as np
import pytest
import torch
from timm.data import random_erasing

from pipeline.data.boxes import Boxes, cutmix_box, erase_box, pixels_in, within
from pipeline.randomness import Purpose, generator
from tests.reference.inputs import read

ERASING = read("augment")["erasing"]
CUTMIX = read("augment")["cutmix_boxes_at_224"]


@pytest.mark.parametrize("row", CUTMIX["rows"], ids=lambda row: f"{row[0]:g} at {row[1]}, {row[2]}")
def test_a_box_of_cutmix_is_that_of_the_official_code(row: list[float]) -> None:
    lam, y, x, top, bottom, left, right, corrected = row
    box = cutmix_box(224, lam, (int(y), int(x)))
    assert box == (top, left, bottom - top, right - left)
    assert 1 - box[2] * box[3] / 224**2 == pytest.approx(corrected, abs=1e-8)


def test_a_box_of_cutmix_that_is_not_cut_off_has_even_sides() -> None:
    sides = {cutmix_box(224, lam, (112, 112))[2:] for lam in np.linspace(0, 1, 5000).tolist()}
    assert {height for height, _ in sides} == set(range(0, 225, 2))
    assert all(height == width for height, width in sides)


def test_erased_boxes_are_drawn_as_the_official_code_draws_them() -> None:
    """Both are drawn, 10,000 boxes each: what is allowed is five standard errors of their difference."""
    theirs, settings = ERASING["measured_at_224"], ERASING["settings"]
    draws = np.array([erase_box(224, settings["probability"], generator(0, Purpose.ERASE, sample=i))
                      for i in range(theirs["n"])])  # fmt: skip
    tops, lefts, heights, widths = draws[draws[:, 2] > 0].T
    assert len(heights) / len(draws) == pytest.approx(theirs["erased_share"], abs=0.015)
    probabilities = ERASING["quantile_probabilities"]
    for name, ours, error, widest in (
        ("area_share", heights * widths / 224**2, 0.0064, 0.012),
        ("log_height_over_width", np.log(heights / widths), 0.049, 0.09),
    ):
        assert ours.mean() == pytest.approx(theirs[name]["mean"], abs=error)
        assert ours.std() == pytest.approx(theirs[name]["sd"], rel=0.05)
        assert np.quantile(ours, probabilities) == pytest.approx(np.array(theirs[name]["quantiles"]), abs=widest)
        assert [ours.min(), ours.max()] == pytest.approx([theirs[name]["min"], theirs[name]["max"]], abs=0.03)
    assert heights.max() <= 223
    for name, place in (("top_over_free", tops / (224 - heights)), ("left_over_free", lefts / (224 - widths))):
        assert place.mean() == pytest.approx(theirs[name]["mean"], abs=0.03)


def test_erased_boxes_have_the_areas_of_timm() -> None:
    ours = [erase_box(64, 0.25, generator(0, Purpose.ERASE, sample=i)) for i in range(4000)]
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


def test_the_pixels_in_boxes_are_what_slices_of_them_would_take() -> None:
    sides = np.array([(0, 0, 0, 0), (2, 3, 4, 1), (0, 0, 6, 5), (5, 4, 1, 1), (1, 1, 0, 0), (1, 0, 2, 3)])
    places = np.arange(6 * 5).reshape(6, 5)
    expected = [
        (view, place)
        for view, (top, left, height, width) in enumerate(sides.tolist())
        for place in places[top : top + height, left : left + width].flatten().tolist()
    ]
    boxes = Boxes.counted(torch.from_numpy(sides), sides)
    assert (boxes.rows, boxes.pixels) == (13, len(expected))
    assert torch.stack(pixels_in(boxes, 5), 1).tolist() == [list(pair) for pair in expected]


def test_what_is_within_a_span_is_what_a_slice_of_it_would_take() -> None:
    spans = [(0, 0), (2, 3), (0, 6), (5, 1)]
    expected = torch.zeros(4, 6, dtype=torch.bool)
    for number, (start, length) in enumerate(spans):
        expected[number, start : start + length] = True
    assert torch.equal(within(*torch.tensor(spans).T, 6), expected)
