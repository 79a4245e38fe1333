"""The dry run: a rehearsal on this machine, of which the speed alone is kept."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pipeline.config import Finetune, Recipe
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.session.rehearsal import MeasuredSpeed, forward_flops, measured_speed, slower, smaller
from recipes import deit_small
from shards.dataset import Dataset
from shards.synthetic import make_dataset
from tests.running import SCRIPT, run
from tests.tiny import HERE

pytestmark = pytest.mark.slow


def job_of(recipe: Recipe, output: str = "") -> Job:
    return resolve(Request(recipe=recipe, output=output), REHEARSAL, Hosting())


def test_the_rehearsal_takes_true_steps_and_keeps_the_speed_alone(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (str(dataset.folder), ""):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert carry_out(Request(recipe=HERE, data=data, dry_run=True)) == 0
        shown = capsys.readouterr().out
        for words in ("GFLOPs", "images/s", "data wait", "peak memory", "20 steps: 4 epochs of 5 steps", "hours"):
            assert words in shown
        parts = job_of(HERE).parameters
        for part, words in (("patch_embed", "patch embedding (patch_embed)"), ("blocks", "blocks"), ("head", "head")):
            assert re.search(rf"{re.escape(words)} +│ +{parts[part][0]:,} +│ +{parts[part][1]:,} ", shown)
        assert re.search(r"slower +│ the (loader|model): loader \d+\.\d images/s alone, model", shown)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "runs/tiny/rehearsal.json"]
    speed, where, views, _ = measured_speed(job_of(HERE))
    assert views > 0
    assert speed > 0
    assert "CPU cores" in where
    assert measured_speed(job_of(replace(HERE, precision="bf16"))) == MeasuredSpeed()  # of another computation
    assert measured_speed(job_of(HERE, "elsewhere")) == MeasuredSpeed()


def test_a_rehearsal_of_fine_tuning_says_how_many_parameters_are_trained_by_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(HERE, finetune=Finetune(strategy="gradual", head_epochs=1))
    assert carry_out(Request(recipe=recipe, output=str(tmp_path), dry_run=True)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    job = job_of(recipe)
    assert "the head alone for 5 steps, then" in shown
    assert f"blocks {job.parameters['blocks'][0]:,} of" in shown


def test_a_run_of_one_step_is_rehearsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path / "data", classes=4, size=24, samples={"train": 12, "test": 4})
    recipe = replace(HERE, epochs=1, optim=replace(HERE.optim, warmup_epochs=0))
    assert carry_out(Request(recipe=recipe, data=str(tmp_path / "data"), output=str(tmp_path), dry_run=True)) == 0
    assert "1 steps: 1 epochs of 1 steps, 12 images" in " ".join(capsys.readouterr().out.split())


def test_what_is_refused_without_a_best_checkpoint_goes_with_it() -> None:
    checkpoint, evaluation = replace(HERE.checkpoint, best="top1"), replace(HERE.eval, patience=3)
    shrunk = smaller(replace(HERE, checkpoint=checkpoint, eval=evaluation), processes=1)
    assert (shrunk.checkpoint.best, shrunk.eval.patience) == ("none", 0)


def test_the_slower_of_loader_and_model_is_named_with_what_to_do() -> None:
    assert slower(80, 100).startswith("the loader: loader 80.0 images/s alone, model 100.0. More --data.workers")
    assert slower(120, 100) == "the model: loader 120.0 images/s alone, model 100.0"


def test_the_flops_of_deit_small_are_those_of_the_papers() -> None:
    # 4.6 G multiply-adds: DeiT issue tracker and timm's tables; one of them is two operations
    assert forward_flops(deit_small.RECIPE) / 2e9 == pytest.approx(4.6, abs=0.05)


@pytest.mark.dist
def test_several_processes_rehearse_together(tmp_path: Path) -> None:
    flags = ("--distill.teacher", "resnet20_cifar", "--distill.no-token", "--output", tmp_path / "run")
    shown = run(SCRIPT, "--dry-run", *flags, processes=2).stdout
    assert shown.count("Rehearsal of tiny") == 1
    assert "2 process(es) with [2, 1] virtual ranks" in " ".join(shown.split())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["rehearsal.json"]
