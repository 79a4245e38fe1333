"""Going back: what a run leaves is set aside, what it saves stays, and the same command goes on."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import Spike
from pipeline.data.batch import Batch
from pipeline.folder import RunFolder
from pipeline.session.events import Events
from pipeline.session.session import Parts
from shards.dataset import Dataset
from shards.files import read_json_lines
from tests.running import metrics, summary, train_here
from tests.tiny import HERE

pytestmark = pytest.mark.slow  # whole runs

RECIPE = replace(HERE, checkpoint=replace(HERE.checkpoint, keep=3))  # one every 2 steps
STEPS = 8


def saved(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")]


def path_of(folder: Path, step: int) -> str:
    return str(checkpoint.folder_of(folder / "checkpoints", step))


def sessions(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(RunFolder(folder).sessions, dict[str, Any]).good


def test_what_lies_beyond_is_removed_and_latest_names_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint.folder_of(tmp_path, step).mkdir()
    checkpoint.remove_beyond(tmp_path, 4)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000004", "step-00000002"]
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    checkpoint.remove_beyond(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train_here(dataset, folder, RECIPE, max_steps=STEPS) == 0
    return folder


@pytest.fixture
def done(unbroken: Path, tmp_path: Path) -> Path:
    """A run that is done, with three checkpoints."""
    shutil.copytree(unbroken, tmp_path / "run")
    assert saved(tmp_path / "run") == [8, 6, 4]
    return tmp_path / "run"


def test_a_run_that_goes_back_sets_aside_what_it_leaves_and_goes_on_from_what_it_saves(
    dataset: Dataset, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, logged = summary(done), metrics(done, "train")
    assert train_here(dataset, done, RECIPE, resume=path_of(done, 4), max_steps=5) == 0
    assert "Set aside: step-00000008, step-00000006." in capsys.readouterr().out
    assert saved(done) == [5, 4]
    left = done / "left-1"
    assert sorted(path.name for path in left.iterdir()) == [
        "metrics.jsonl",
        "step-00000006",
        "step-00000008",
        "summary.json",
    ]
    assert (summary(left), metrics(left, "train")) == (before, logged)
    assert train_here(dataset, done, RECIPE, max_steps=STEPS) == 0
    assert (saved(done), [line["step"] for line in metrics(done, "train")]) == ([8, 6, 5], [*range(1, STEPS + 1)])
    assert summary(done)["weights_sha256"] == before["weights_sha256"]


def test_a_run_that_goes_on_from_another_folder_sets_its_own_checkpoints_aside(
    dataset: Dataset, done: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert train_here(dataset, other, RECIPE, max_steps=2) == 0
    assert train_here(dataset, other, RECIPE, resume=path_of(done, 6), max_steps=7) == 0
    assert saved(other) == [7]
    assert (other / "left-1" / "step-00000002").is_dir()
    assert saved(done) == [8, 6, 4]


def test_the_same_command_goes_on_from_the_runs_own_newest_checkpoint(
    dataset: Dataset, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            raise KeyboardInterrupt

    new, start = tmp_path / "new", path_of(done, 4)
    with pytest.raises(KeyboardInterrupt):  # nothing is saved yet
        train_here(dataset, new, RECIPE, Parts(events=Killed), resume=start)
    assert train_here(dataset, new, RECIPE, resume=start, max_steps=5) == 0
    assert "began from there already" not in capsys.readouterr().out
    shutil.rmtree(start)  # as retention does, where it is the run's own
    assert train_here(dataset, new, RECIPE, resume=start, max_steps=STEPS) == 0
    assert f"--resume {start}: the run began from there already" in capsys.readouterr().out
    assert [(line["from_step"], line["resume"]) for line in sessions(new)] == [(4, start), (4, start), (5, None)]
    assert summary(new)["weights_sha256"] == summary(done)["weights_sha256"]
    assert not (new / "left-1").exists()


def test_a_run_goes_back_as_often_as_another_checkpoint_is_named(dataset: Dataset, done: Path) -> None:
    for step in (6, 6, 4, 6):  # of which the second is the first again
        assert train_here(dataset, done, RECIPE, resume=path_of(done, step), max_steps=7) == 0
    assert [line["from_step"] for line in sessions(done)] == [0, 6, 4, 6]
    assert saved(done) == [7, 6, 4]
    assert [len(list((done / f"left-{number}").glob("step-*"))) for number in (1, 2, 3)] == [1, 2, 1]


def test_a_rollback_keeps_what_is_saved_on_the_way_and_nothing_of_the_way_to_the_spike(
    dataset: Dataset, tmp_path: Path
) -> None:
    class Stopped(Events):
        """Meets a spike in step 7, counted from 0, and is asked to stop when step 4 is skipped for it."""

        def after_batch(self, batch: Batch, images: Tensor) -> None:
            super().after_batch(batch, images)
            if batch.step == 7:
                images.fill_(float("nan"))

        def skip_step(self, step: int) -> bool:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().skip_step(step)

    every: Any = replace(HERE.checkpoint, every_steps=4, keep=1)
    recipe = replace(HERE, spike=Spike(policy="rollback"), checkpoint=every)
    assert train_here(dataset, tmp_path, recipe, max_steps=7) == 0
    assert saved(tmp_path) == [7, 4]
    assert train_here(dataset, tmp_path, recipe, Parts(events=Stopped)) == 75
    newest, by_steps = saved(tmp_path)
    assert by_steps == 4 < newest < 7
