"""`vitrail drill`: that a run survives, and that one which does not is told from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import drill
from launch.drill import Drill, Fault
from launch.saboteur import drilled
from pipeline import checkpoint
from shards.dataset import Dataset
from tests.conftest import HERE, train_here, vitrail


@pytest.mark.dist
@pytest.mark.timeout(400)
def test_a_run_survives_what_clusters_do(dataset: Dataset, script: Path) -> None:
    said = vitrail("drill", script, "--data", dataset.folder, seconds=350).stdout
    assert said.count(" survived ") == len(drill.FAULTS) + 1 - ("not tried" in said)
    assert "bit for bit" in said


@pytest.fixture
def place(dataset: Dataset, tmp_path: Path) -> Drill:
    """A run of six steps, to be broken."""
    small = drilled(HERE, 1)
    train_here(dataset, tmp_path / "unbroken", small, max_steps=6)
    train_here(dataset, tmp_path / "broken", small, max_steps=4)
    return Drill("tiny", small, [], dataset.folder, dataset, tmp_path / "broken", "cpu", 1)


def outcome(place: Drill, fault: Fault = drill.FAULTS[0]) -> drill.Outcome:
    return drill.meet(place, replace(place, folder=place.folder.parent / "unbroken"), fault, 6)


def test_a_run_that_says_nothing_has_not_survived(place: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "session", lambda *_: "Killed")
    (place.folder / "summary.json").unlink()
    found = outcome(place)
    assert found.well is False
    assert "the run did not say 'Stopped on request" in found.says
    assert "Killed" in found.says


def test_a_run_with_other_losses_has_not_survived(place: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "session", lambda *_: drill.STOPPED)
    (place.folder / "summary.json").unlink()
    assert outcome(place).well
    lines = [json.loads(line) for line in (place.folder / "metrics.jsonl").read_text().splitlines()]
    lines[1]["loss"] += 1e-7
    (place.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "the losses up to step 4 are not those" in outcome(place).says
    for path in checkpoint.checkpoints(place.folder / "checkpoints"):
        (path / "state.json").unlink()
    assert "no checkpoint is whole" in outcome(place).says


def test_what_hangs_is_ended(place: Drill) -> None:
    assert "did not end within 1 s" in drill.session(replace(place, patience=1.0), "none", 0, 6)
