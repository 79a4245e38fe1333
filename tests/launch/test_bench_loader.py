"""`vitrail bench loader`: what it measures and says; never how fast anything is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from launch import bench_loader, measured
from launch.bench_loader import STAGES, Stopwatch, TimedBatches, feeding, profile
from launch.loaders import LOADERS
from launch.measured import ALL_CORES, Measured, compared
from pipeline.config import Recipe
from pipeline.data.batch import TrainingBatches
from shards.dataset import Dataset
from tests.http_server import serving
from tests.running import SCRIPT, vitrail
from tests.tiny import TINY


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of one batch a worker."""
    monkeypatch.setattr(measured, "ROUNDS", 1)
    monkeypatch.setattr(bench_loader, "SECONDS", 0.0)


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the collector
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core
def test_the_json_has_each_table_with_its_unit(dataset: Dataset, short: None) -> None:
    said = vitrail(
        *("bench", "loader", SCRIPT, "--data", dataset.folder, "--against", "timm,torchvision"),
        *("--workers", "1", "2", "--feeds", "1e9", "--json"),
    ).stdout
    *tables, feeds, repeated, alone = json.loads(said)
    units = ["views/s", "views/s of a core's own time"]
    assert [(table["what"], table["unit"]) for table in tables] == [
        (f"loader of tiny, {workers} worker(s), 4 views a batch", unit) for workers in (1, 2) for unit in units
    ]
    arms = ["vitrail", "vitrail, repeats 1", *list(LOADERS)[:3]]
    for table in tables:
        assert list(table["speeds"]) == arms
        assert all(len(speeds) == table["n"] == 1 and speeds[0] > 0 for speeds in table["speeds"].values())
        assert list(table["ratios"]) == [f"{arm} / webdataset and timm" for arm in arms if arm != arms[2]]
    assert feeds["rate"] == 1e9
    assert feeds["cores_needed"] > feeds["cores"]
    assert feeds["measured"] == tables[-1]["speeds"]["vitrail"][0]
    for stages in (repeated, alone):
        assert tuple(stages["stages"]) == STAGES
        assert all(times[0] > 0 for times in stages["stages"].values())


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_benchmark_makes_up_what_it_needs(short: None) -> None:
    said = vitrail("bench", "loader", SCRIPT, "--against", "timm", "--workers", "1", "--feeds", "1e9").stdout
    assert "vitrail / webdataset and timm:" in said
    assert "too few" in said
    assert "--augmnt.flip" in vitrail("bench", "loader", SCRIPT, "--augmnt.flip", "0", code=2).stderr


def test_tars_behind_a_url_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with serving(dataset.folder) as server:
        command = ("bench", "loader", SCRIPT, "--data", server.url, "--data.cache", tmp_path)
        assert "curl" in vitrail(*command, code=2).stderr


@pytest.mark.parametrize(
    "recipe",
    [TINY, replace(TINY, augment=replace(TINY.augment, crop="padded", policy="three", jitter=0.3, rotate=5.0))],
    ids=["rand", "three"],
)
def test_the_stages_that_are_timed_make_the_batches_of_a_run(recipe: Recipe, dataset: Dataset) -> None:
    watch, index = Stopwatch(), dataset.splits["train"]
    timed, plain = TimedBatches(recipe, index, watch)[1, 0], TrainingBatches(recipe, index)[1, 0]
    np.testing.assert_array_equal(timed.records.host, plain.records.host)
    assert set(watch.seconds) == {*STAGES} - {"transfer"}


def test_the_time_of_a_stage_is_not_that_of_the_one_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(bench_loader.time, "process_time", lambda: next(clock))
    watch = Stopwatch()
    with watch.stage("collate"), watch.stage("decode"):
        pass
    assert watch.seconds == {"collate": 1.0 + 4.0, "decode": 2.0}


def test_the_stages_of_both_arms_are_told(dataset: Dataset, short: None) -> None:
    threads = torch.get_num_threads()
    stages = profile(TINY, dataset.splits["train"])
    assert [one.what for one in stages] == ["stages of vitrail, tiny", "stages of vitrail, repeats 1, tiny"]
    assert torch.get_num_threads() == threads


def of_a_core(*speeds: float) -> Measured:
    return compared("a loader", [{"vitrail": speed} for speed in speeds], "vitrail", {})


def test_devices_ask_of_each_core_an_equal_part() -> None:
    cores = len(ALL_CORES)
    asked = feeding(1500.0 * cores, of_a_core(999.0, 1000.0, 1200.0))
    assert (asked.asked, asked.measured, asked.cores_needed) == (1500.0, 1000.0, -(-3 * cores // 2))
