"""Policies: each operation by the pixels of its source, and how often and how strongly it is done.

`tests/reference/augment.json` holds what the official codes make of one image. Operations that a table of values does
meet its means; those that interpolate or sum come within the bounds below. `test_pixels.py` compares pixel by pixel.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from timm.data import auto_augment

from pipeline.config import Augment
from pipeline.data import pixels, policy
from pipeline.data.policy import (
    AUTO_OPS,
    AUTO_POLICY,
    AUTO_V0_OPS,
    AUTO_V0_POLICY,
    GREY,
    OPS,
    POLICIES,
    TF_NAMES,
    TF_OPS,
    TIMM,
    cutout,
    rand_augment,
    rand_augment_tf,
    three_augment,
)  # fmt: skip
from pipeline.randomness import Purpose, generator
from recipes.vit_small_plain_90ep import RECIPE as VIT_SMALL_PLAIN
from recipes.vitc_4gf import RECIPE as VITC_4GF
from tests.reference.inputs import formula_image, read

NOISE = np.random.Generator(np.random.Philox(key=1))
PHOTO = pixels.resize(NOISE.integers(0, 256, (12, 16, 3), dtype=np.uint8), 80, 60)
FORMULA = formula_image()
DEIT = Augment(rand_ops=2)
BIG_VISION = VIT_SMALL_PLAIN.augment
PYCLS = VITC_4GF.augment

REFERENCE = read("augment")
RAND = REFERENCE["randaugment"]
RAND_TF = REFERENCE["big_vision_randaug_2_10"]
AUTO_V0 = REFERENCE["pycls_autoaugment"]
SIGNS = {"plus": 1, "minus": -1, "value": 1}


INTERPOLATED = 0.5  # of a mean, in grey levels: Pillow cuts values off where OpenCV rounds them
FEW = ("Color", "Sharpness", "Shear", "Translate", "Rotate")


def means(image: NDArray[np.uint8], name: str) -> Any:
    """Return what a mean of each channel must be: with the 9 digits of the file, or within a bound."""
    close = INTERPOLATED if name.startswith(FEW) else 1e-6
    return pytest.approx(image.mean((0, 1), dtype=np.float64).tolist(), abs=close)


def draws(settings: Augment, count: int, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, float]]]:
    """Return the operations that a policy does to so many views, with their levels; pixels stay as they are."""
    found: list[list[tuple[str, float]]] = []

    def noted(op: str) -> Callable[..., NDArray[np.uint8]]:
        def note(image: NDArray[np.uint8], level: float, *_: Any) -> NDArray[np.uint8]:
            found[-1].append((op, level))
            return image

        return note

    for table in (OPS, TF_OPS, AUTO_OPS, AUTO_V0_OPS):
        for op in table:
            monkeypatch.setitem(table, op, noted(op))  # type: ignore[arg-type]
    monkeypatch.setattr(policy, "cutout", noted("Cutout"))
    for sample in range(count):
        found.append([])
        POLICIES[settings.policy](PHOTO, settings, generator(0, Purpose.AUGMENT, sample=sample), None)
    return found


def assert_shares(counts: Mapping[str, int], shares: Mapping[str, float], count: int, *, drawn: bool = False) -> None:
    """Compare how often something happened in so many draws with its shares, `drawn` in as many, by five errors."""
    assert set(counts) == {name for name, share in shares.items() if share}
    for name, share in shares.items():
        error = (share * (1 - share) * (1 + drawn) / count) ** 0.5
        assert counts[name] / count == pytest.approx(share, abs=5 * error), name


# ---- RandAugment of timm ---------------------------------------------------------------------------------------------


def test_the_operations_are_those_of_timm_with_increasing_severity() -> None:
    assert list(OPS) == auto_augment._RAND_INCREASING_TRANSFORMS


def test_the_operations_are_those_of_the_official_code() -> None:
    assert list(OPS) == RAND["ops"]
    assert list(TIMM.fill) == RAND["fill"]


@pytest.mark.parametrize("name", OPS)
def test_every_operation_gives_the_means_of_the_official_code(name: str) -> None:
    for sign, expected in RAND["formula_image_channel_means_at_9"][name].items():
        assert expected == means(OPS[name](FORMULA, SIGNS[sign] * 0.9), name)


WITH_ARGUMENT: Mapping[str, Callable[[NDArray[np.uint8], Any], NDArray[np.uint8]]] = {
    "Rotate": lambda image, degrees: pixels.rotate(image, degrees, TIMM),
    "PosterizeIncreasing": pixels.posterize,
    "SolarizeIncreasing": pixels.solarize,
    "SolarizeAdd": pixels.solarize_add,
    "ColorIncreasing": pixels.saturation,
    "ContrastIncreasing": pixels.contrast,
    "BrightnessIncreasing": pixels.brightness,
    "SharpnessIncreasing": pixels.sharpness,
    "ShearX": lambda image, factor: pixels.shear_x(image, factor, 0, TIMM),
    "ShearY": lambda image, factor: pixels.shear_y(image, factor, 0, TIMM),
    "TranslateXRel": lambda image, share: pixels.translate(image, share * image.shape[1], 0, TIMM),
    "TranslateYRel": lambda image, share: pixels.translate(image, 0, share * image.shape[0], TIMM),
}


@pytest.mark.parametrize("name", WITH_ARGUMENT)
def test_a_magnitude_gives_the_argument_of_the_official_code(name: str) -> None:
    for sign, arguments in RAND["arguments"][name].items():
        for magnitude, argument in zip(RAND["argument_at_magnitudes"], arguments, strict=True):
            ours = OPS[name](PHOTO, SIGNS[sign] * magnitude / 10).astype(int)
            # a factor of a level may differ in its last bit, and a row lie right between two of its places
            assert abs(ours - WITH_ARGUMENT[name](PHOTO, argument)).mean() < 0.2


def test_operations_and_magnitudes_are_drawn_as_the_official_code_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    views = draws(DEIT, 20_000, monkeypatch)
    numbers = Counter(str(len(view)) for view in views)
    assert_shares(
        numbers, dict(zip("012", RAND["ops_applied_per_view_share_of_20000"], strict=True)), len(views), drawn=True
    )
    applied = [op for view in views for op in view]
    assert_shares(Counter(name for name, _ in applied), dict.fromkeys(OPS, 1 / 15), len(applied))
    magnitudes = np.array([10 * abs(level) for _, level in applied])
    clipped = RAND["clipped_magnitude"]
    assert magnitudes.mean() == pytest.approx(clipped["mean"], abs=0.02)
    assert magnitudes.std() == pytest.approx(clipped["sd"], abs=0.015)
    assert (magnitudes == 10).mean() == pytest.approx(clipped["share_at_10"], abs=0.006)
    assert np.mean([level > 0 for _, level in applied]) == pytest.approx(0.5, abs=0.02)


def test_rand_augment_applies_an_operation_half_of_the_time() -> None:
    changed = 0
    for sample in range(400):
        rng = generator(0, Purpose.AUGMENT, sample=sample)
        changed += not np.array_equal(rand_augment(PHOTO, replace(DEIT, rand_ops=1), rng), PHOTO)
    # half, less the few operations that leave this picture as it is
    assert 150 < changed < 220


# ---- RandAugment of big_vision ---------------------------------------------------------------------------------------


def test_the_operations_are_those_of_big_vision() -> None:
    assert set(TF_NAMES) == set(RAND_TF["ops"])
    assert list(GREY) == RAND_TF["fill"]


@pytest.mark.parametrize("name", TF_OPS)
def test_every_operation_gives_the_means_of_big_vision(name: str) -> None:
    expected = RAND_TF["formula_image_channel_means_at_10_plus_sign"][name]
    assert expected == means(TF_OPS[name](FORMULA, 1.0), name)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_the_other_sign_moves_pixels_the_other_way(name: str) -> None:
    def mirror(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(image[::-1] if name.endswith("Y") else image[:, ::-1])

    apart = mirror(TF_OPS[name](mirror(FORMULA), -1.0)).astype(int) - TF_OPS[name](FORMULA, 1.0)
    assert (apart != 0).any(2).mean() < 0.1  # rows whose places lie right between two pixels


@pytest.mark.parametrize(
    ("size", "name"), [(224, "contrast_blends_with_grey_at_224"), (112, "contrast_blends_with_grey_at_112")]
)
def test_contrast_blends_with_a_grey_of_the_size_of_the_image(size: int, name: str) -> None:
    grey = RAND_TF[name]
    flat = np.full((size, size, 3), grey, np.uint8)
    assert np.unique(TF_OPS["Contrast"](flat, 1.0)).tolist() == [grey]
    assert np.unique(TF_OPS["Contrast"](flat - 10, 1.0)).tolist() == [grey - 19]


def test_solarize_inverts_everything_at_full_magnitude() -> None:
    assert RAND_TF["solarize_inverts_everything"]
    assert np.array_equal(TF_OPS["Solarize"](PHOTO, 1.0), 255 - PHOTO)


def test_cutout_fills_a_square_of_grey_around_its_centre() -> None:
    white = np.full((224, 224, 3), 255, np.uint8)
    side = RAND_TF["cutout_side"]
    found = cutout(white, -1.0, (0.5, 0.25))
    grey = (found == GREY).all(2)
    assert grey.sum() == side**2
    assert grey[112 - side // 2 : 112 + side // 2, 56 - side // 2 : 56 + side // 2].all()
    assert (cutout(white, 1.0, (0.0, 0.999)) == GREY).all(2).sum() == (side // 2) * (side // 2 + 1)
    assert white.min() == 255


def test_every_operation_of_big_vision_is_done_at_one_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    views = draws(BIG_VISION, 8000, monkeypatch)
    assert {len(view) for view in views} == {RAND_TF["ops_per_view"]}
    applied = [op for view in views for op in view]
    assert len(applied) == RAND_TF["applications"]
    assert_shares(Counter(name for name, _ in applied), dict.fromkeys(RAND_TF["ops"], 1 / 16), len(applied))
    assert_shares(
        Counter(name for name, _ in applied), RAND_TF["share_of_applications_measured"], len(applied), drawn=True
    )
    assert {abs(level) for _, level in applied} == {1.0}
    assert np.mean([level > 0 for _, level in applied]) == pytest.approx(0.5, abs=0.02)


def test_no_view_of_big_vision_is_black() -> None:
    """timm's operations, of which PosterizeIncreasing keeps 0 bits at this magnitude, make 9 % of views so."""
    ours, timms = (
        [make(PHOTO, settings, generator(0, Purpose.AUGMENT, sample=i)).max() == 0 for i in range(600)]
        for make, settings in (
            (rand_augment_tf, BIG_VISION),
            (rand_augment, replace(DEIT, rand_magnitude=10, rand_std=0.0, rand_prob=1.0)),
        )
    )
    assert sum(ours) == 0
    assert sum(timms) > 30


# ---- AutoAugment -----------------------------------------------------------------------------------------------------


AUTO_V0_WITH_ARGUMENT: Mapping[str, Callable[[NDArray[np.uint8], Any], NDArray[np.uint8]]] = {
    "Rotate": lambda image, degrees: pixels.rotate(image, degrees, policy.PYCLS),
    "Posterize": lambda image, bits: pixels.posterize(image, max(1, int(bits))),
    "Solarize": lambda image, threshold: pixels.solarize(
        image, int(threshold)
    ),  # a whole one, as timm's: see recipes.md
    "SolarizeAdd": pixels.solarize_add,
    "Color": pixels.saturation,
    "ShearX": lambda image, factor: pixels.shear_x(image, factor, 0, policy.PYCLS),
    "ShearY": lambda image, factor: pixels.shear_y(image, factor, 0, policy.PYCLS),
    "TranslateYRel": lambda image, share: pixels.translate(image, 0, share * image.shape[0], policy.PYCLS),
}


@pytest.mark.parametrize("case", AUTO_V0["formula_image_channel_means"])
def test_every_operation_gives_the_means_of_pycls(case: str) -> None:
    name, magnitude = case.split()
    for sign, expected in AUTO_V0["formula_image_channel_means"][case].items():
        if sign != "argument":
            assert expected == means(AUTO_V0_OPS[name](FORMULA, SIGNS[sign] * int(magnitude) / 10), name)


@pytest.mark.parametrize(("pairs", "count"), [(AUTO_POLICY, 25), (AUTO_V0_POLICY, AUTO_V0["pairs"])])
def test_auto_augment_has_25_pairs(pairs: policy.Pairs, count: int) -> None:
    assert [len(pair) for pair in pairs] == [2] * count


@pytest.mark.parametrize(
    ("settings", "shares"),
    [(Augment(policy="auto"), "applications_per_view_original_policy"), (PYCLS, "applications_per_view")],
    ids=["auto", "auto_v0"],
)
def test_operations_are_done_as_often_as_by_the_official_codes(
    settings: Augment, shares: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = draws(settings, 20_000, monkeypatch)
    assert_shares(Counter(op for view in views for op, _ in view), AUTO_V0[shares], len(views))


def test_the_magnitudes_of_pycls_are_those_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, set[str]] = {}
    for name, _, magnitude in (op for pair in AUTO_V0_POLICY for op in pair):
        found.setdefault(name, set()).add(str(magnitude))
    assert {name: found[name] for name in AUTO_V0["argument_by_magnitude"]} == {
        name: set(arguments) for name, arguments in AUTO_V0["argument_by_magnitude"].items()
    }
    for name, arguments in AUTO_V0["argument_by_magnitude"].items():
        for magnitude, argument in arguments.items():
            ours = AUTO_V0_OPS[name](PHOTO, int(magnitude) / 10).astype(int)
            assert abs(ours - AUTO_V0_WITH_ARGUMENT[name](PHOTO, argument)).mean() < 0.2, (name, magnitude)
    drawn = {abs(level) for view in draws(PYCLS, 2000, monkeypatch) for _, level in view}
    assert drawn <= {magnitude / 10 for magnitude in range(11)}  # no noise


def test_three_augment_does_each_of_three_a_third_of_the_time() -> None:
    views = [three_augment(PHOTO, DEIT, generator(0, Purpose.AUGMENT, sample=i)) for i in range(300)]
    grey = sum(bool((view == view[..., :1]).all()) for view in views)
    solarized = sum(np.array_equal(view, pixels.solarize(PHOTO)) for view in views)
    assert all(70 < count < 130 for count in (grey, solarized, 300 - grey - solarized))


@pytest.mark.parametrize(
    ("policy", "settings"),
    [("rand", DEIT), ("rand_tf", BIG_VISION), ("auto", DEIT), ("auto_v0", DEIT), ("three", DEIT)],
)
def test_a_policy_names_what_it_did_and_does_the_same(policy: str, settings: Augment) -> None:
    done: list[str] = []
    views = [
        POLICIES[policy](PHOTO, settings, generator(0, Purpose.AUGMENT, sample=3), names) for names in (done, None)
    ]
    assert np.array_equal(*views)
    done = []
    for sample in range(20):
        POLICIES[policy](PHOTO, settings, generator(0, Purpose.AUGMENT, sample=sample), done)
    known = {*OPS, *TF_OPS, *AUTO_OPS, *AUTO_V0_OPS, "Cutout", "Grayscale", "GaussianBlur"}
    assert len(done) >= 8
    assert set(done) <= known
