"""The learning rate, against the closed forms of the sources and the rates that the official code had."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import DecayShape, ScheduleName
from pipeline.rules import recipe_problems
from pipeline.update.schedule import Schedule, cosine, warmup_stable_decay
from recipes.deit_small import RECIPE
from tests.reference.inputs import read
from tests.tiny import TINY

OFFICIAL = read("schedule")
STEPS = 10  # of an epoch
CURVE = {"peak": 1e-3, "floor": 1e-5, "warmup": 100, "total": 1000, "start": 1e-6}


def half_cosine(share: float) -> float:
    """Return the rate of CURVE after this share of half a cosine."""
    return 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        # DeiT's, timm's: the warm-up hides the cosine's beginning
        *(("timm", 0, 1e-6), ("timm", 50, (1e-6 + 1e-3) / 2), ("timm", 100, half_cosine(0.1))),
        *(("timm", 550, half_cosine(0.55)), ("timm", 1000, 1e-5)),
        # pycls: lr_fun_cos times 1/1000 (1 - t / 100) + t / 100
        *(("pycls", 0, 1e-6), ("pycls", 50, 0.5005 * half_cosine(0.05)), ("pycls", 100, half_cosine(0.1))),
        # big_vision: progress is counted from the warm-up's end
        *(("big_vision", 50, (1e-6 + 1e-3) / 2), ("big_vision", 100, 1e-3), ("big_vision", 550, half_cosine(0.5))),
        ("big_vision", 1000, 1e-5),
    ],
)
def test_the_rate_rises_linearly_and_falls_as_half_a_cosine_as_in_the_source(
    schedule: ScheduleName, step: int, expected: float
) -> None:
    assert cosine(step, schedule=schedule, **CURVE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["timm", "pycls", "big_vision"])
def test_without_warm_up_the_first_step_has_the_peak(schedule: ScheduleName) -> None:
    assert cosine(0, peak=0.1, floor=0, warmup=0, total=10, start=1e-6, schedule=schedule) == 0.1


def test_the_peak_of_deit_small_is_a_thousandth() -> None:
    assert RECIPE.peak_lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("deit_small", "deit_300"),
        ("deit_small_384", "deit_384"),
        ("deit3_small", "deit3_small_800"),
        ("deit3_base_224", "deit3_base_224_finetune"),
    ],
)
def test_the_rates_are_the_official_ones_but_for_their_epoch(name: str, table: str) -> None:
    """Official rates come an epoch late, and stay for an epoch: ours are those an epoch before, and fall within it."""
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    official = np.array(OFFICIAL[table]["lr_by_epoch"])[1:]
    rates = np.array([Schedule(recipe, STEPS).lr(step) for step in range(recipe.epochs * STEPS)])
    assert len(rates) == (len(official) + 1) * STEPS
    # as printed, with nine digits
    np.testing.assert_allclose(rates[:-STEPS:STEPS], official, rtol=1e-8)
    by_epoch = rates.reshape(-1, STEPS).mean(1)[:-1]
    assert np.abs(by_epoch - official)[7:].max() < 0.005 * recipe.peak_lr


def test_the_plain_vit_and_the_convolutional_stems_have_the_schedules_of_their_own_code() -> None:
    plain, stem = (importlib.import_module(f"recipes.{name}").RECIPE for name in ("vit_small_plain_90ep", "vitc_4gf"))
    # big_vision/utils.py: half of the way from step 10,000 on
    middle = 10_000 + (90 * 1251 - 10_000) // 2
    assert Schedule(plain, 1251).lr(middle) == pytest.approx(5e-4, rel=1e-4)
    # pycls/core/optimizer.py with its WARMUP_FACTOR of 0.1
    rates = [Schedule(stem, 10).lr(10 * epoch) for epoch in range(6)]
    ramp = [0.1 * (1 - epoch / 5) + epoch / 5 for epoch in range(6)]
    expected = [1e-3 * (1 + math.cos(math.pi * epoch / 100)) / 2 * ramp[epoch] for epoch in range(6)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)], ids=lambda value: str(value)
)
def test_warmup_stable_decay_rises_stays_and_falls(shape: DecayShape, middle: float) -> None:
    curve = {"peak": 1.0, "floor": 0.1, "warmup": 10, "decay": 20, "total": 100, "start": 0.0, "shape": shape}
    rates = {step: warmup_stable_decay(step, **curve) for step in (0, 5, 10, 50, 80, 90, 100)}
    expected = {0: 0.0, 5: 0.5, 10: 1.0, 50: 1.0, 80: 1.0, 90: 0.1 + 0.9 * middle, 100: 0.1}
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_recipe_with_warmup_stable_decay_needs_an_end() -> None:
    wsd = replace(TINY, optim=replace(TINY.optim, schedule="wsd", decay_epochs=1.0))
    assert list(recipe_problems(wsd)) == []
    rates = [Schedule(wsd, 5).lr(step) for step in range(20)]
    assert rates[5:16] == [1e-3] * 11
    assert rates[16] < 1e-3
    assert rates[19] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 5)
    for optim, says in (
        (replace(wsd.optim, decay_epochs=0.0), "over how many epochs does the rate fall"),
        (replace(wsd.optim, decay_epochs=3.5), "together are longer than the 4 epochs there are"),
        (replace(wsd.optim, schedule="timm"), "--optim.decay-epochs 1.0 is for --optim.schedule wsd"),
    ):
        (problem,) = recipe_problems(replace(wsd, optim=optim))
        assert says in str(problem)
