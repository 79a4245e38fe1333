"""`vitrail drill`: that a run survives, and that one which does not is told from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import drill
from launch.drill import Drill, Fault
from launch.saboteur import drilled
from pipeline import checkpoint
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, resolve
from pipeline.request import Request
from shards.dataset import Dataset, read_dataset
from shards.splits import rearranged
from shards.synthetic import make_dataset
from tests.running import SCRIPT, train_here, vitrail_process
from tests.tiny import HERE


@pytest.mark.dist
def test_a_run_survives_what_clusters_do(dataset: Dataset) -> None:
    said = vitrail_process("drill", SCRIPT, "--data", dataset.folder).stdout
    assert said.count(" survived ") == len(drill.FAULTS) + 1 - ("not tried" in said)
    assert "bit for bit" in said


def test_a_drills_data_is_split_already(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "made", classes=2, size=8, samples={"training": 4, "test": 6})
    swapped = rearranged(made, ["train=test", "val=training"])
    drill.link_shards(swapped, tmp_path / "links")
    assert {split: len(index) for split, index in read_dataset(tmp_path / "links").splits.items()} == {"train": 6}
    assert drilled(replace(HERE, data=replace(HERE.data, splits=("train=test",))), 1).data.splits == ()


@pytest.fixture
def broken(dataset: Dataset, tmp_path: Path) -> Drill:
    """A run of six steps, to be broken."""
    small = drilled(HERE, 1)
    train_here(dataset, tmp_path / "unbroken", small, max_steps=6)
    train_here(dataset, tmp_path / "broken", small, max_steps=4)
    request = Request(recipe=small, data=str(dataset.folder), output=str(tmp_path / "broken"))
    return Drill(resolve(request, REHEARSAL, Hosting()), "tiny", [], "cpu")


def outcome(broken: Drill, fault: Fault = drill.FAULTS[0]) -> drill.Outcome:
    unbroken = RunFolder(broken.folder.path.parent / "unbroken")
    return drill.meet(broken, replace(broken, job=replace(broken.job, folder=unbroken)), fault, 6)


@pytest.mark.slow
def test_a_run_that_says_nothing_has_not_survived(broken: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "session", lambda *_: "Killed")
    broken.folder.summary.unlink()
    found = outcome(broken)
    assert found.survived is False
    assert "the run did not say 'Stopped on request" in found.says
    assert "Killed" in found.says


@pytest.mark.slow
def test_a_run_with_other_losses_has_not_survived(broken: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "session", lambda *_: drill.STOPPED)
    broken.folder.summary.unlink()
    assert outcome(broken).survived
    lines = [json.loads(line) for line in broken.folder.metrics.read_text().splitlines()]
    lines[1]["loss"] += 1e-7
    broken.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "the losses up to step 4 are not those" in outcome(broken).says
    for path in checkpoint.checkpoints(broken.folder.checkpoints):
        (path / "state.json").unlink()
    assert "no checkpoint is whole" in outcome(broken).says


@pytest.mark.slow
def test_what_hangs_is_ended(broken: Drill) -> None:
    assert "did not end within 1 s" in drill.session(replace(broken, patience=1.0), "none", 0, 6)
