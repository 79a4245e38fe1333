"""What benchmarks share: what is made of speeds, and of the recipe that is measured."""

from dataclasses import replace

from launch.measured import alone, in_turn
from pipeline.config import Distill
from tests.tiny import TINY


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    fast, slow = iter([1.0] + [4.0] * 4 + [9.0] * 3), iter([1.0] + [2.0] * 7)  # the first round is not counted
    measured = in_turn("a race", {"fast": lambda: next(fast), "slow": lambda: next(slow)}, "slow")
    assert measured.ratios == {"fast / slow": 2.0}
    assert measured.speeds["fast"] == [4.0] * 4 + [9.0] * 3
    assert measured.n == 7


def test_one_virtual_rank_is_benched_and_its_schedule_does_not_end() -> None:
    small = alone(TINY, "bf16")
    assert (small.batch, small.virtual_ranks, small.precision) == (4, 1, "bf16")
    assert small.epochs > 1000


def test_a_benchmark_asks_no_teacher_and_leaves_its_store_alone() -> None:
    taught = replace(TINY, distill=Distill(teacher="resnet20_cifar", store="somewhere"))
    assert alone(taught, "bf16").distill == Distill()
