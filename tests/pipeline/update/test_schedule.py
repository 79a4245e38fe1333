import pytest

from pipeline.update.schedule import cosine
from recipes.deit_small import RECIPE


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-6), (50, (1e-6 + 1e-3) / 2), (100, 1e-3), (550, (1e-3 + 1e-5) / 2), (1000, 1e-5)],
)
def test_the_rate_rises_linearly_and_falls_as_half_a_cosine(step: int, expected: float) -> None:
    rate = cosine(step, peak=1e-3, floor=1e-5, warmup=100, total=1000, start=1e-6)
    assert rate == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert cosine(0, peak=0.1, floor=0, warmup=0, total=10, start=1e-6) == 0.1


def test_the_peak_of_deit_small_is_a_thousandth() -> None:
    assert RECIPE.peak_lr == pytest.approx(1e-3)
