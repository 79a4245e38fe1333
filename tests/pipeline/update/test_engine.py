"""Every engine on real processes: one checkpoint for all, the same steps after it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import Recipe
from pipeline.folder import RunFolder
from pipeline.hosting import hosting_of_launch
from pipeline.rules import hosting_problems
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import ENVIRONMENT, PROGRAMS, SCRIPT, metrics, run, run_launched, summary, train_here
from tests.tiny import ENGINES, HERE

NAMES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
SAVED, LAST = 3, 5  # steps
START = "zero3-2"  # whose processes share all: engine and processes of the run that others go on from
PROGRAM = PROGRAMS / "engines.py"


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Return what a run's checkpoint of step SAVED holds, by file and name."""
    checkpoint = RunFolder(folder).checkpoints / f"step-{SAVED:08d}"
    files = {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    return {f"{file}/{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


@pytest.mark.dist
def test_a_run_saved_under_any_engine_goes_on_under_any_other(dataset: Dataset, tmp_path: Path) -> None:
    # any engine saves the same tensors, and any goes on from those of one: so any pair does
    for processes in (2, 1):  # START is a run of two
        arguments = (tmp_path, dataset.folder, SAVED, LAST, START, *NAMES)
        run(PROGRAM, "matrix", *arguments, processes=processes)
    saved = [tmp_path / f"{engine}-{processes}" for engine in NAMES for processes in (1, 2)]
    train_here(dataset, tmp_path / "unbroken", ENGINES, max_steps=LAST)
    expected = [line["loss"] for line in metrics(tmp_path / "unbroken", "train")]
    tensors = saved_tensors(tmp_path / START)
    for start in saved:
        assert [line["loss"] for line in metrics(start, "train")] == pytest.approx(expected[:SAVED], rel=1e-5), start
        others = saved_tensors(start)
        assert others.keys() == tensors.keys(), start
        for name, tensor in tensors.items():
            assert (others[name].dtype, others[name].shape) == (tensor.dtype, tensor.shape), (start.name, name)
            # weights move by the rate; moments are of gradients, whose sums have another order
            bound = 0.01 * ENGINES.optim.lr if not name.startswith("optimizer") else 1e-4 * tensor.abs().max().item()
            assert (others[name] - tensor).abs().max().item() <= bound + 1e-9, (start.name, name)
    weights = load_file(RunFolder(tmp_path / "unbroken").ema_weights)
    for start in saved:
        folder = start.with_name(f"{start.name}-on")
        losses = [line["loss"] for line in metrics(folder, "train")]
        assert losses == pytest.approx(expected[SAVED:], rel=1e-4), folder.name
        averaged = load_file(RunFolder(folder).ema_weights)
        worst = max((averaged[name] - weights[name]).abs().max().item() for name in weights)
        assert worst < 0.01 * ENGINES.optim.lr, folder.name


@pytest.mark.dist
def test_gradual_fine_tuning_and_dropout_are_the_same_under_any_engine(dataset: Dataset, tmp_path: Path) -> None:
    run(PROGRAM, "gradual", tmp_path, dataset.folder, *NAMES, processes=2)
    alone, *others = [[line["loss"] for line in metrics(tmp_path / engine, "train")] for engine in NAMES]
    assert len(alone) == 5
    for losses in others:
        assert losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.dist
def test_optimizers_of_timm_go_on_under_engines_that_share_their_state(dataset: Dataset, tmp_path: Path) -> None:
    names, engines = (
        ("lion", "nadamlegacy", "laprop"),
        ("ddp", "fsdp2", "zero1", "zero3"),
    )  # the latter count in numbers
    run(PROGRAM, "optimizers", tmp_path, dataset.folder, ",".join(names), *engines, processes=2)
    for name in names:
        alone, *others = [
            [line["loss"] for line in metrics(tmp_path / f"{name}-{engine}", "train")] for engine in engines
        ]
        assert len(alone) == 4
        for losses in others:
            assert losses == pytest.approx(alone, rel=1e-5), name


@pytest.mark.dist
# the files of ZeRO-1 and ZeRO-2 differ from ZeRO-3's by the stage, which tests/test_wheel.py reads
@pytest.mark.parametrize("config", ["cpu", "fsdp2", "deepspeed_zero3"])
def test_a_configuration_of_the_repository_trains_and_compiles_nothing(
    config: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "compiled"
    monkeypatch.setitem(ENVIRONMENT, "TORCH_EXTENSIONS_DIR", str(compiled))
    arguments = ("--data", dataset.folder, "--output", tmp_path / "run", "--max-steps", 2, "--virtual-ranks", 2)
    out = run_launched(config, SCRIPT, *arguments, processes=2)
    assert f"on 2 process(es) (1, 1), {config.removeprefix('deepspeed_').replace('cpu', 'ddp')}" in out
    assert summary(tmp_path / "run")["steps"] == 2
    assert not compiled.exists()


@pytest.mark.parametrize(
    ("changes", "engine", "message"),
    [
        ({}, "zero2", "3 processes cannot host --virtual-ranks 16 under zero2, .* Start 1, 2, 4, 8, 16, or take DDP"),
        ({"optim": replace(HERE.optim, name="lamb")}, "fsdp2", "lamb needs each parameter in one piece"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(changes: dict[str, Any], engine: Any, message: str) -> None:
    recipe: Recipe = replace(HERE, batch=16, virtual_ranks=16, **changes)
    assert list(hosting_problems(recipe, 3, "ddp")) == []
    with pytest.raises(BadRequest, match=message):
        raise BadRequest(hosting_problems(recipe, 3, engine))


def test_a_launcher_configuration_that_is_none_of_ours_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BadRequest, match=r"FSDP 1; take launch/configs/fsdp2.yaml"):
        hosting_of_launch(HERE)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "gone.json"))
    with pytest.raises(BadRequest, match=r"gone.json: not a JSON file with zero_optimization.stage"):
        hosting_of_launch(HERE)
