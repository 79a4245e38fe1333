"""`vitrail bench step|recipe`: that every arm runs; never how fast it is."""

from pathlib import Path

import pytest

from launch import bench, measured
from launch.bench import against_a_bare_loop, against_timm, bench_step, extract
from launch.measured import Measured, alone
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.request import Request
from shards.dataset import Dataset
from shards.open import Opener, Reading
from tests.http_server import serving
from tests.tars import listed
from tests.tiny import HERE, TINY


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of one step."""
    monkeypatch.setattr(measured, "ROUNDS", 1)
    monkeypatch.setattr(bench, "STEPS", 1)


def assert_arms(measured: Measured, *arms: str) -> None:
    assert tuple(measured.speeds) == arms
    assert all(speed > 0 for speeds in measured.speeds.values() for speed in speeds)
    assert len(measured.ratios) == len(arms) - 1


def job_on(dataset: Dataset) -> Job:
    return resolve(Request(recipe=alone(HERE, "fp32"), data=str(dataset.folder)), REHEARSAL)


@pytest.mark.slow
def test_the_loop_runs_beside_a_bare_one(dataset: Dataset, short: None) -> None:
    assert_arms(against_a_bare_loop(job_on(dataset), 0), "vitrail, from shards", "bare loop, one batch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm opens images and leaves them to the collector
def test_the_loop_runs_beside_timms(dataset: Dataset, short: None) -> None:
    assert_arms(against_timm(job_on(dataset), 0), "vitrail", "timm")


def test_of_a_stream_the_first_images_are_read_and_no_others(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "EXTRACTED", 3)
    index = dataset.splits["train"]
    with serving(listed(tmp_path / "served", index)) as server:
        extract(Opener(Reading(cache=str(tmp_path / "cache")), lambda _: None).open(server.url), tmp_path / "images")
    labels = [int(index.row(sample)["label"]) for sample in range(3)]
    written = {(path.parent.name, path.stem) for path in (tmp_path / "images").glob("*/*")}
    assert written == {(f"{label:04d}", f"{sample:06d}") for sample, label in enumerate(labels)}
    assert {asked.path for asked in server.gets(".tar")} == {index.shards[0].name}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # in torch._dynamo
def test_every_setting_of_a_step_is_timed(short: None) -> None:
    steps = bench_step(TINY)
    assert_arms(steps, *bench.SETTINGS, bench.BARE)
    assert "MB kept" in steps.notes["bf16"]
