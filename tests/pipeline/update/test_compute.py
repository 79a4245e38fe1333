"""How a step is computed changes its speed and memory, and no number but for rounding."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import job
from pipeline.config import Compute, EngineName, Model, Recipe
from pipeline.devices import compiles, current
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL
from pipeline.request import Request
from pipeline.rules import hosting_problems
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import PROGRAMS, metrics, run, train_here
from tests.tiny import ENGINES, HERE

CONVOLUTIONS = replace(HERE, epochs=1, model=replace(HERE.model, name="vitc_1gf", dropout=0.2))
SETTINGS = {
    "plain": Compute(fused_optimizer=False, tf32=False),
    "checkpointed": Compute(activation_checkpointing=True),
    "contiguous": Compute(channels_last=False),
    "compiled": Compute(compile="on"),
}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder, "train")]


@pytest.fixture(scope="module")
def usual(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usual")
    train_here(dataset, folder, CONVOLUTIONS)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # in torch._dynamo
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_same_losses(dataset: Dataset, usual: Path, tmp_path: Path, name: str) -> None:
    train_here(dataset, tmp_path, CONVOLUTIONS, max_steps=2)
    train_here(dataset, tmp_path, replace(CONVOLUTIONS, compute=SETTINGS[name]))  # a run may go on in another way
    assert losses(tmp_path) == pytest.approx(losses(usual), rel=1e-4)


COMPILING = ("ddp", "fsdp2", "zero2")  # `tests/programs/engines.py`


@pytest.mark.dist
def test_every_engine_compiles_and_checkpoints(dataset: Dataset, tmp_path: Path) -> None:
    run(PROGRAMS / "engines.py", "compiled", tmp_path, dataset.folder, processes=2)
    train_here(dataset, tmp_path / "usual", replace(ENGINES, epochs=1, model=replace(ENGINES.model, depth=1)))
    for engine in COMPILING:
        assert losses(tmp_path / engine) == pytest.approx(losses(tmp_path / "usual"), rel=1e-4)


def test_a_step_in_pieces_is_not_compiled() -> None:
    recipe = replace(HERE, compute=Compute(compile="on"))
    assert [problem.field for problem in hosting_problems(recipe, 3, "zero3")] == ["compute.compile"]


LONG = replace(HERE, epochs=400)  # 2,000 steps


@pytest.mark.parametrize(
    ("recipe", "engine", "max_steps", "compiled"),
    [
        (LONG, "ddp", 0, True),
        (LONG, "zero2", 0, True),
        (LONG, "zero3", 0, False),
        (LONG, "ddp", 500, True),  # as when the same run goes on
        (HERE, "ddp", 0, False),
        (replace(LONG, compute=Compute(compile="off")), "ddp", 0, False),
        (replace(HERE, compute=Compute(compile="on")), "ddp", 0, True),
        (replace(LONG, model=Model(name="resnet18")), "ddp", 0, False),  # no blocks
        (replace(LONG, model=Model(name="efficientnet_b0")), "ddp", 0, False),  # batch norm
    ],
    ids=["long", "zero2", "zero3", "cut short", "short", "off", "on", "convolutions", "batch norm"],
)
def test_auto_compiles_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, engine: EngineName, max_steps: int, compiled: bool
) -> None:
    monkeypatch.setattr(job, "compiles", lambda _: True)  # as on a GPU
    hosting = Hosting(engine=engine)
    resolved = job.resolve(Request(recipe=recipe, max_steps=max_steps), REHEARSAL, hosting)
    assert resolved.hosting.compiled == compiled


def test_auto_compiles_nothing_on_a_processor() -> None:
    assert job.resolve(Request(recipe=LONG), REHEARSAL, Hosting()).hosting.compiled == compiles(current())


def test_activation_checkpointing_of_what_has_no_blocks_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, model=Model(name="resnet18"), compute=Compute(activation_checkpointing=True))
    with pytest.raises(BadRequest, match="activation-checkpointing is for ViTs, which resnet18 is not"):
        train_here(dataset, tmp_path, recipe)
