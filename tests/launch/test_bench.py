"""`vitrail bench`: that every arm runs, and what is made of its speeds; never how fast it is."""

import json
from dataclasses import replace
from typing import get_args

import pytest

from launch import bench
from launch.bench import Measured, against_a_bare_loop, against_timm, alone, bench_loader, bench_step, in_turn, policy
from pipeline.config import Distill, Policy
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.request import Request
from shards.dataset import Dataset
from tests.running import SCRIPT, vitrail
from tests.tiny import HERE, TINY


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of one step."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "STEPS", 1)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    fast, slow = iter([1.0] + [4.0] * 4 + [9.0] * 3), iter([1.0] + [2.0] * 7)  # the first round is not counted
    measured = in_turn("a race", {"fast": lambda: next(fast), "slow": lambda: next(slow)}, "slow")
    assert measured.ratios == {"fast / slow": 2.0}
    assert measured.speeds["fast"] == [4.0] * 4 + [9.0] * 3
    assert measured.n == 7


def assert_arms(measured: Measured, *arms: str) -> None:
    assert tuple(measured.speeds) == arms
    assert all(speed > 0 for speeds in measured.speeds.values() for speed in speeds)
    assert len(measured.ratios) == len(arms) - 1


def job_on(dataset: Dataset) -> Job:
    return resolve(Request(recipe=alone(HERE, "fp32"), data=str(dataset.folder)), REHEARSAL)


@pytest.mark.parametrize("name", get_args(Policy))
def test_timm_is_asked_for_its_own_rand_augment_alone(name: str) -> None:
    asked = policy(replace(TINY, augment=replace(TINY.augment, policy=name)))
    assert asked == ("rand-n2-m9-mstd0.5-inc1" if name == "rand" else None)


@pytest.mark.slow
def test_the_loop_runs_beside_a_bare_one(dataset: Dataset, short: None) -> None:
    measured = against_a_bare_loop(job_on(dataset), 0)
    assert_arms(measured, "vitrail, from shards", "bare loop, one batch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm opens images and leaves them to the collector
def test_the_loop_runs_beside_timms(dataset: Dataset, short: None) -> None:
    assert_arms(against_timm(job_on(dataset), 0), "vitrail", "timm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_loader_runs_beside_webdatasets(dataset: Dataset, short: None) -> None:
    assert_arms(bench_loader(TINY, dataset), "vitrail", "webdataset and timm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # in torch._dynamo
def test_every_setting_of_a_step_is_timed(short: None) -> None:
    measured = bench_step(TINY)
    assert_arms(measured, *bench.SETTINGS)
    assert "MB kept" in measured.notes["bf16"]


@pytest.mark.dist
def test_a_benchmark_makes_up_what_it_needs() -> None:
    (measured,) = json.loads(vitrail("bench", "loader", SCRIPT, "--json").stdout)
    assert measured["n"] == bench.ROUNDS
    assert "--augmnt.flip" in vitrail("bench", "loader", SCRIPT, "--augmnt.flip", "0", code=2).stderr


def test_one_virtual_rank_is_benched_and_its_schedule_does_not_end() -> None:
    small = alone(TINY, "bf16")
    assert (small.batch, small.virtual_ranks, small.precision) == (4, 1, "bf16")
    assert small.epochs > 1000


def test_a_benchmark_asks_no_teacher_and_leaves_its_store_alone() -> None:
    taught = replace(TINY, distill=Distill(teacher="resnet20_cifar", store="somewhere"))
    assert alone(taught, "bf16").distill == Distill()
