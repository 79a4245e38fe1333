"""Every recipe of the repository is imported, checked, and run for two steps on made-up data."""

import importlib
import pkgutil
import re
from dataclasses import replace
from pathlib import Path

import pytest

import recipes
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, resolve
from pipeline.model.build import has_fixed_size
from pipeline.request import Request, parse
from pipeline.rules import recipe_problems
from pipeline.run import carry_out
from pipeline.teacher.teacher import write_random_weights
from shards.synthetic import make_dataset
from tests.bench.claims import TABLES, Row
from tests.running import metrics

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_named_for_its_file_and_has_no_problem(name: str) -> None:
    module = importlib.import_module(f"recipes.{name}")
    assert module.RECIPE.name == name
    resolve(Request(recipe=module.RECIPE), REHEARSAL, Hosting())
    assert "Run:" in module.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_for_two_steps(name: str, tmp_path: Path) -> None:
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    # its model, augmentation and optimizer, with two images a step; large transformers of two blocks, CNNs at 96 px
    model = replace(recipe.model, pretrained=False)
    if recipe.model.img_size >= 192:
        fixed = has_fixed_size(recipe.model.name)
        model = replace(model, depth=2) if fixed else replace(model, img_size=96)
    small = replace(
        recipe,
        batch=2,
        virtual_ranks=2,
        epochs=max(10, recipe.epochs),
        model=model,
        data=replace(recipe.data, workers=0, subset=0),
        eval=replace(recipe.eval, batch=2),
    )
    if recipe.distill.teacher:
        teacher = recipe.distill.teacher.replace("regnety_160.deit_in1k", "regnety_002")
        taught = replace(recipe.distill, teacher=teacher, weights=str(tmp_path / "teacher.safetensors"))
        small = replace(small, distill=taught)
        write_random_weights(small, Path(taught.weights))
    data = make_dataset(
        tmp_path / "data", classes=recipe.data.classes, size=model.img_size + 8, samples={"train": 8, "val": 2}
    )
    assert carry_out(Request(recipe=small, data=str(data.folder), output=str(tmp_path / "run"), max_steps=2)) == 0
    assert [line["samples"] for line in metrics(tmp_path / "run", "eval")] == [2] * (2 if recipe.ema.decay else 1)


@pytest.mark.parametrize(
    "row", [row for table in TABLES for row in table.rows if isinstance(row, Row)], ids=lambda row: row.name
)
def test_a_row_of_the_reproduction_is_a_request_without_a_problem(row: Row) -> None:
    recipe = importlib.import_module(f"recipes.{row.recipe}").RECIPE
    request = parse(recipe, re.sub(r"\{[^}]*\}", "there", row.flags).split())
    assert list(recipe_problems(request.recipe)) == []
    assert request.unknown == ()
