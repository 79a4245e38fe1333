"""Every engine on real processes: one checkpoint for all, the same steps after it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from pipeline.config import Recipe, problems
from pipeline.hosting import ENGINE_VARIABLES, engine_of_launch
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.conftest import HERE, ROOT, metrics, run_launched, summary, train_here

ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
SAVED, LAST = 3, 5  # steps
RECIPE = replace(
    HERE,
    name="engines",
    batch=16,
    virtual_ranks=4,
    model=replace(HERE.model, name="vitc_1gf"),  # batch norm, whose statistics no engine may change
    optim=replace(HERE.optim, clip=0.5),
    checkpoint=replace(HERE.checkpoint, every_steps=SAVED),
)

# Runs in one group of processes what its arguments name: FOLDER DATA STEPS ENGINE[=RUN TO START FROM] ...
SCRIPT = """
import os, sys
from pathlib import Path
from pipeline.request import Request
from pipeline.run import carry_out
from tests.pipeline.test_engines import RECIPE, become

folder, data, steps, *cases = sys.argv[1:]
for case in cases:
    engine, _, start = case.partition("=")
    become(engine)
    output = f"{folder}/{engine}-{os.environ['WORLD_SIZE']}" + (f"-of-{Path(start).name}" if start else "")
    resume = f"{start}/checkpoints/step-00000003" if start else "never"
    request = Request(recipe=RECIPE, data=data, output=output, max_steps=int(steps), resume=resume)
    assert carry_out(request) == 0
"""


def variables(engine: str) -> dict[str, str]:
    """Return what `accelerate launch` puts into the environment for an engine's configuration."""
    if engine == "ddp":
        return {}
    if engine == "fsdp2":
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    path = ROOT / "launch/configs" / f"deepspeed_{engine}.json"
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


def become(engine: str) -> None:
    """Make this process one that `accelerate launch` has started with an engine's configuration, after others."""
    for name in ENGINE_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables(engine))
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.dist
@pytest.mark.timeout(900)
def test_a_run_saved_under_any_engine_goes_on_under_any_other(dataset: Dataset, tmp_path: Path) -> None:
    script = tmp_path / "engines.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        run_launched("fsdp2", script, tmp_path, dataset.folder, SAVED, *ENGINES, processes=processes)
    saved = [tmp_path / f"{engine}-{processes}" for engine in ENGINES for processes in (1, 2)]
    cases = [f"{engine}={start}" for engine in ENGINES for start in saved]
    for processes in (1, 2):
        run_launched("fsdp2", script, tmp_path, dataset.folder, LAST, *cases, processes=processes)
    train_here(dataset, tmp_path / "unbroken", RECIPE, max_steps=LAST)
    expected = [line["loss"] for line in metrics(tmp_path / "unbroken", "train")]
    weights = load_file(tmp_path / "unbroken" / "model_ema.safetensors")
    for start in saved:
        assert [line["loss"] for line in metrics(start, "train")] == pytest.approx(expected[:SAVED], rel=1e-5), start
        for engine in ENGINES:
            for processes in (1, 2):
                folder = tmp_path / f"{engine}-{processes}-of-{start.name}"
                losses = [line["loss"] for line in metrics(folder, "train")]
                assert losses == pytest.approx(expected[SAVED:], rel=1e-4), folder.name
                averaged = load_file(folder / "model_ema.safetensors")
                worst = max((averaged[name] - weights[name]).abs().max().item() for name in weights)
                assert worst < 0.01 * RECIPE.optim.lr, folder.name


@pytest.mark.dist
@pytest.mark.parametrize("config", ["cpu", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_configuration_of_the_repository_trains(config: str, dataset: Dataset, script: Path, tmp_path: Path) -> None:
    arguments = ("--data", dataset.folder, "--output", tmp_path / "run", "--max-steps", 2, "--virtual-ranks", 2)
    out = run_launched(config, script, *arguments, processes=2)
    assert f"on 2 process(es) (1, 1), {config.removeprefix('deepspeed_').replace('cpu', 'ddp')}" in out
    assert summary(tmp_path / "run")["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "engine", "message"),
    [
        ({}, "zero2", "3 processes cannot host --virtual-ranks 16 under zero2, .* Start 1, 2, 4, 8, 16, or take DDP"),
        ({"optim": replace(HERE.optim, name="lamb")}, "fsdp2", "lamb needs each parameter in one piece"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(changes: dict[str, Any], engine: Any, message: str) -> None:
    recipe: Recipe = replace(HERE, batch=16, virtual_ranks=16, **changes)
    assert problems(recipe, None, processes=3) == []
    found = problems(recipe, None, processes=3, engine=engine)
    with pytest.raises(BadRequest, match=message):
        raise BadRequest(found)


def test_a_launcher_configuration_that_is_none_of_ours_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BadRequest, match=r"FSDP 1; take launch/configs/fsdp2.yaml"):
        engine_of_launch()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "gone.json"))
    with pytest.raises(BadRequest, match=r"gone.json: not a JSON file with zero_optimization.stage"):
        engine_of_launch()
