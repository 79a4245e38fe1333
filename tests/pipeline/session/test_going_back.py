"""Going back: what a run leaves is set aside, what it saves stays, and the same command goes on."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import Spike
from pipeline.data.batch import Batch
from pipeline.session.events import Events
from pipeline.session.session import Parts
from shards.dataset import Dataset
from tests.running import metrics, summary, train_here
from tests.tiny import HERE

RECIPE = replace(HERE, checkpoint=replace(HERE.checkpoint, keep=3))  # one every 2 steps
STEPS = 8


def saved(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")]


def path_of(folder: Path, step: int) -> str:
    return str(checkpoint.folder_of(folder / "checkpoints", step))


@pytest.fixture
def done(dataset: Dataset, tmp_path: Path) -> Path:
    """A run that is done, with three checkpoints."""
    assert train_here(dataset, tmp_path / "run", RECIPE, max_steps=STEPS) == 0
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
