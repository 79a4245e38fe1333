"""The best checkpoint and the end at a plateau: what is kept, exported and said, and the same after a stop."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint
from pipeline.folder import RunFolder
from pipeline.rules import data_problems, recipe_problems
from pipeline.session.best import Best
from pipeline.session.evaluate import Score
from pipeline.session.events import Events
from pipeline.session.session import Parts
from shards.dataset import Dataset
from tests.running import metrics, summary, train_here
from tests.tiny import HERE, STEPS

JUDGED = replace(
    HERE,
    eval=replace(HERE.eval, every_epochs=0, every_steps=2),
    checkpoint=replace(HERE.checkpoint, every_steps=4, best="top1", keep=1),
)
STOPPING = replace(JUDGED, eval=replace(JUDGED.eval, patience=3))
TOP1 = {2: 0.3, 4: 0.5, 6: 0.8, 8: 0.8, 10: 0.2, 12: 0.7, 14: 0.9}  # of the average, by step


def score(top1: float, loss: float = 1.0) -> Score:
    return Score(top1=top1, top5=1.0, loss=loss, samples=21, heads={})


class Judged(Events):
    """Evaluates in truth, and takes other scores."""

    def evaluate(self, step: int, *, record: bool = True) -> None:
        super().evaluate(step, record=record)
        self.scores = {"raw": score(0.1), "ema": score(TOP1.get(step, 0.4))}


PARTS = Parts(events=Judged)


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    best = Best("loss", patience=2)
    nan = float("nan")
    assert [best.note(step, {"raw": score(0.1, loss), "ema": score(0.1, nan)}) for step, loss in
            enumerate((nan, 2.0, nan, 1.0, nan, nan))] == [False, True, False, True, False, False]  # fmt: skip
    assert best.record
    assert (best.record["value"], best.record["weights"]) == (1.0, "raw")
    assert best.at_plateau


def kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")]


@pytest.fixture(scope="module")
def ended(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended at a plateau, unbroken."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    assert train_here(dataset, folder, STOPPING, PARTS) == 0
    return folder


@pytest.mark.slow
def test_a_run_ends_at_a_plateau_and_exports_the_best(
    ended: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    done = summary(ended)
    assert (done["steps"], done["exported_step"], done["top1"], done["top1_ema"]) == (12, 6, 0.1, 0.8)
    assert {name: done["best"][name] for name in ("metric", "value", "weights", "step")} == {
        "metric": "top1",
        "value": 0.8,
        "weights": "ema",
        "step": 6,
    }
    assert kept(ended) == [12, 6]
    saved = load_file(checkpoint.folder_of(ended / "checkpoints", 6) / "ema.safetensors")
    exported = load_file(RunFolder(ended).ema_weights)
    assert all(torch.equal(saved[name], value) for name, value in exported.items())
    (event,) = metrics(ended, "event")
    assert event["event"] == (
        "plateau: nothing better than top1 0.8000 of the ema weights after step 6 in 3 evaluations"
    )
    (session,) = (json.loads(line) for line in (ended / "sessions.jsonl").read_text().splitlines())
    assert (session["ended"], session["to_step"]) == ("done", 12)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1, 6, 7), (9,), (11, 12)])
def test_a_plateau_is_the_same_after_stops(
    ended: Path, dataset: Dataset, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    # a stop by --max-steps evaluates at its end, which an unbroken run does not: so what is taken is a request
    class Asked(Judged):
        def after_step(self, step: int, *arguments: Any) -> bool:
            self._stop.asked = step + 1 == self.stop_after
            return super().after_step(step, *arguments)

    for stop in stops:
        events = type("At", (Asked,), {"stop_after": stop})
        train_here(dataset, tmp_path, STOPPING, Parts(events=events))
    assert train_here(dataset, tmp_path, STOPPING, PARTS) == 0
    done, expected = summary(tmp_path), summary(ended)
    for name in ("steps", "exported_step", "best", "top1", "top1_ema", "weights_sha256"):
        assert done[name] == expected[name], name
    assert kept(tmp_path) == kept(ended)


@pytest.mark.slow
def test_a_run_that_ended_at_a_plateau_is_done_and_goes_on_with_more_patience(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(dataset, tmp_path, STOPPING, PARTS)
    capsys.readouterr()
    assert train_here(dataset, tmp_path, STOPPING, PARTS) == 0
    assert "all 12 steps are done" in capsys.readouterr().out
    (tmp_path / "summary.json").unlink()  # killed before it
    assert train_here(dataset, tmp_path, STOPPING, PARTS) == 0
    assert summary(tmp_path)["steps"] == 12
    patient = replace(STOPPING, eval=replace(STOPPING.eval, patience=9))
    assert train_here(dataset, tmp_path, patient, PARTS) == 0
    done = summary(tmp_path)
    assert (done["steps"], done["exported_step"]) == (STEPS, 14)
    assert "exported  the best: top1 0.9000 of the ema weights after step 14" in capsys.readouterr().out


@pytest.mark.slow
def test_where_the_best_checkpoint_is_torn_the_newest_weights_are_exported_aloud(
    ended: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    (folder / "summary.json").unlink()
    os.truncate(checkpoint.folder_of(folder / "checkpoints", 6) / "model.safetensors", 100)
    assert train_here(dataset, folder, STOPPING, PARTS) == 0
    said = capsys.readouterr().out
    assert "torn or altered (its hash differs). Exporting the newest weights instead of the best." in said
    assert "exported  the best" not in said
    assert (summary(folder)["exported_step"], summary(folder)["best"]) == (12, None)


@pytest.mark.slow
def test_evaluations_and_checkpoints_come_by_steps_and_by_epochs(dataset: Dataset, tmp_path: Path) -> None:
    often = replace(
        HERE,
        epochs=2,
        eval=replace(HERE.eval, every_epochs=1, every_steps=3),
        checkpoint=replace(HERE.checkpoint, every_steps=4, every_epochs=1, keep=9),
        ema=replace(HERE.ema, more=(0.5,)),
    )
    train_here(dataset, tmp_path, often)
    assert [line["step"] for line in metrics(tmp_path, "eval") if line["weights"] == "raw"] == [3, 5, 6, 9, 10]
    assert kept(tmp_path) == [10, 8, 5, 4]
    assert {line["weights"] for line in metrics(tmp_path, "eval")} == {"raw", "ema", "ema-0.5"}
    assert (tmp_path / "model_ema-0.5.safetensors").exists()
    assert summary(tmp_path)["top1_ema-0.5"] is not None


@pytest.mark.slow
def test_muon_and_several_averages_are_resumed_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(
        HERE,
        optim=replace(HERE.optim, name="muon", args=("ns_steps=4",), schedule="wsd", decay_epochs=1),
        ema=replace(HERE.ema, more=(0.5, 0.99)),
    )
    train_here(dataset, tmp_path / "unbroken", recipe, max_steps=6)
    for step in (3, 6):
        train_here(dataset, tmp_path / "resumed", recipe, max_steps=step)
    for name in ("", "_ema", "_ema-0.5", "_ema-0.99"):
        one, other = (load_file(tmp_path / folder / f"model{name}.safetensors") for folder in ("unbroken", "resumed"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name


def test_the_best_is_the_earliest_of_equal_ones_over_all_weights() -> None:
    best = Best("top1", 2)
    assert best.note(1, {"raw": score(0.5), "ema": score(0.4)})
    assert not best.note(2, {"raw": score(0.5), "ema": score(0.4)})
    assert not best.at_plateau
    again = Best("top1", 2, best.record)
    assert not again.note(3, {"raw": score(float("nan")), "ema": score(0.1)})
    assert again.at_plateau
    assert again.note(4, {"raw": score(0.5), "ema": score(0.6)})
    assert not again.at_plateau
    assert str(again) == "top1 0.6000 of the ema weights after step 4"


def test_a_loss_is_better_where_it_is_lower() -> None:
    best = Best("loss", 0)
    for step, (loss, better) in enumerate([(2.0, True), (1.5, True), (1.6, False), (1.0, True)]):
        assert best.note(step, {"raw": score(0.5, loss)}) is better
    assert Best("top1", 0, best.record).record is None  # of another metric
    assert not Best("none", 0).note(1, {"raw": score(1.0)})


def test_a_best_without_evaluations_is_refused(dataset: Dataset) -> None:
    recipe = replace(JUDGED, eval=replace(JUDGED.eval, every_steps=0))
    (problem,) = recipe_problems(recipe)
    assert str(problem).startswith("--checkpoint.best top1 compares evaluations: how often")
    alone = replace(dataset, splits={"train": dataset.splits["train"]})
    (problem,) = data_problems(JUDGED, alone)
    assert "has no split `val` or `test` to evaluate on" in str(problem)
    (problem,) = recipe_problems(replace(HERE, eval=replace(HERE.eval, patience=2)))
    assert "--eval.patience 2 is for --checkpoint.best top1" in str(problem)
