"""Spikes: what is one, and that a run without its steps is a function of the recipe still."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import Spike
from pipeline.data.batch import Batch
from pipeline.errors import TrainingError
from pipeline.rules import recipe_problems
from pipeline.session.events import Events
from pipeline.session.session import Parts
from pipeline.session.spike import WINDOW, Watch
from shards.dataset import Dataset
from tests.running import PROGRAMS, metrics, run, summary, traces, train_here
from tests.tiny import HERE, STEPS

SKIPPING = replace(HERE, spike=Spike(policy="skip"))
ROLLING = replace(HERE, spike=Spike(policy="rollback"), checkpoint=replace(HERE.checkpoint, every_steps=4, keep=1))


def poisoned(*steps: int) -> Parts:
    """Return parts that give the model NaN for images at some steps, of virtual rank 1."""

    class Poisoned(Events):
        def after_batch(self, batch: Batch, images: Tensor | None) -> None:
            super().after_batch(batch, images)
            if batch.step in steps and batch.virtual_rank == 1:
                assert images is not None
                images.fill_(float("nan"))

    return Parts(events=Poisoned)


def trained(folder: Path) -> list[int]:
    """Return the steps that a run has trained, counted from 0, each once for a virtual rank."""
    steps = [line["step"] for line in traces(folder)]
    assert sorted([*set(steps)] * 3) == steps
    return sorted(set(steps))


def without(*steps: int) -> list[int]:
    return [step for step in range(STEPS) if step not in steps]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "skipped"), [(SKIPPING, (9,)), (ROLLING, (8, 9))], ids=["skip", "rollback"])
def test_a_spike_is_skipped_named_and_met_again_after_a_stop(
    dataset: Dataset, tmp_path: Path, recipe: Any, skipped: tuple[int, ...]
) -> None:
    parts = poisoned(9)
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    assert train_here(dataset, unbroken, recipe, parts, trace_samples=True) == 0
    assert trained(unbroken) == without(*skipped)
    assert [line["step"] - 1 for line in metrics(unbroken, "train")] == without(*skipped)
    (event,) = metrics(unbroken, "event")
    assert event["event"] == "step 9: the loss is not finite"
    assert event["skipped_steps"] == [skipped[0], skipped[-1]]
    assert list(event["samples"]) == ["1"]
    assert summary(unbroken)["views_seen"] == (STEPS - len(skipped)) * 12
    newest = checkpoint.checkpoints(unbroken / "checkpoints")[0]
    assert json.loads((newest / "state.json").read_text())["skipped_steps"] == [[skipped[0], skipped[-1]]]
    # stopped one step before, where a checkpoint is that a rollback must not take, and once more after it
    for step in (9, 11, STEPS):
        train_here(dataset, stopped, recipe, parts, max_steps=step, trace_samples=True)
    assert summary(stopped)["weights_sha256"] == summary(unbroken)["weights_sha256"]
    assert traces(stopped) == traces(unbroken)
    assert metrics(stopped, "event") == [event]


@pytest.mark.slow
def test_a_spike_at_the_first_and_the_last_step_is_skipped(dataset: Dataset, tmp_path: Path) -> None:
    train_here(dataset, tmp_path, SKIPPING, poisoned(0, STEPS - 1), trace_samples=True)
    assert trained(tmp_path) == without(0, STEPS - 1)
    assert summary(tmp_path)["steps"] == STEPS


@pytest.mark.slow
def test_after_as_many_spikes_as_are_allowed_the_run_stops(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 8: the loss is not finite.*3 spikes were skipped before"):
        train_here(dataset, tmp_path, SKIPPING, poisoned(3, 5, 6, 8))
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_the_checkpoint_that_a_rollback_needs_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    for step in (5, 6, 7):
        train_here(dataset, tmp_path, ROLLING, max_steps=step)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [7, 4]


@pytest.mark.dist
def test_every_engine_skips_the_same_steps(dataset: Dataset, tmp_path: Path) -> None:
    run(PROGRAMS / "engines.py", "spikes", tmp_path, dataset.folder, processes=2)
    one = metrics(tmp_path / "ddp", "train")
    assert [line["step"] - 1 for line in one] == [*range(8), 10, 11]
    for engine in ("fsdp2", "zero1", "zero3"):
        other = metrics(tmp_path / engine, "train")
        assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in one], rel=1e-4)
        assert metrics(tmp_path / engine, "event")[0]["skipped_steps"] == [8, 9]


def test_a_leap_is_told_by_the_median_of_the_losses_before() -> None:
    watch = Watch(Spike(factor=2.0))
    for step in range(WINDOW):
        assert watch.judge([9.0 if step == 5 else 1.0, 1.0], 1.0) == ("", [])  # too early to say
    assert watch.judge([1.9, 1.9], 1.0) == ("", [])
    assert watch.judge([3.0, 1.5], 1.0) == ("the loss leaps from 1 to 2.25", [0])
    assert len(watch.losses) == WINDOW
    assert Watch(Spike(factor=2.0), watch.losses).judge([3.0, 3.0], 1.0)[1] == [0, 1]
    assert watch.judge([1.0, float("nan")], 1.0) == ("the loss is not finite", [1])
    assert watch.judge([1.0, 1.0], float("inf")) == ("the gradient is not finite", [0, 1])


def test_a_rollback_without_checkpoints_by_steps_is_refused() -> None:
    recipe = replace(ROLLING, checkpoint=replace(HERE.checkpoint, every_steps=0))
    assert [problem.field for problem in recipe_problems(recipe)] == ["spike.policy"]
    (problem,) = recipe_problems(replace(HERE, spike=Spike(factor=0.5)))
    assert "every loss would leap" in problem.sentence
