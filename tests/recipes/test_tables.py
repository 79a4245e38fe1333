"""The tables of docs/recipes.md hold every recipe, with all that it sets, and where it is from."""

import pkgutil
import re
from importlib import import_module
from typing import Any

import pytest

import recipes
from pipeline.config import FIELDS
from pipeline.fields import Role, flatten
from tests.recipe_tables import PAGE, cell, families, filled, sources, unsourced

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
TEXT = PAGE.read_text()
DEFAULTS = dict(
    re.findall(r"^\| `(\S+)` \| ([^|]*) \| \S[^|]* \|$", TEXT.rpartition("\n| left alone |")[2], re.MULTILINE)
)


def printed() -> dict[str, dict[str, str]]:
    """Return the cells of the page's tables of recipes, by recipe and field."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in TEXT.splitlines():
        cells = [text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]]
        if line.startswith("| field |"):
            columns = cells[1:-1]
            assert not found.keys() & set(columns), "a recipe is in one table"
            found |= {name: {} for name in columns}
        elif line.startswith("| `") and columns:
            for name, text in zip(columns, cells[1:-1], strict=True):
                found[name][cells[0].strip("`")] = text
        elif not line.startswith("|"):
            columns = []
    return found


def default(field: str) -> Any:
    """Return what a field is where nothing is said; of tuples a list."""
    value = FIELDS[field].default
    return list(value) if isinstance(value, tuple) else value


def chosen(name: str) -> dict[str, Any]:
    """Return the fields of a recipe that are not at their defaults, or have none."""
    values: dict[str, Any] = flatten(import_module(f"recipes.{name}").RECIPE)
    return {field: value for field, value in values.items() if value != default(field) and field != "name"}


def test_the_tables_are_those_that_the_recipes_make() -> None:
    assert filled(TEXT) == TEXT, "write them anew: python -m tests.recipe_tables"


def test_every_recipe_is_in_a_table() -> None:
    assert sorted(printed()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_chooses_is_in_its_table_with_its_value(name: str) -> None:
    """Or it is the choice of the recipe that the table says it is as."""
    cells = printed()
    (base,) = (family.base for family in families(TEXT) if name in family.names)
    shown = {**cells.get(base, {}), **cells[name]}
    assert {field: shown.get(field) for field in chosen(name)} == {
        field: cell(value) for field, value in chosen(name).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_leaves_alone_is_in_the_table_of_defaults_with_its_source(name: str) -> None:
    (base,) = (family.base for family in families(TEXT) if name in family.names)
    cells = printed()
    shown = cells[name].keys() | cells.get(base, {}).keys()
    left = [field for field, of in FIELDS.items() if of.role is not Role.FREE and field not in shown]
    assert {field: DEFAULTS.get(field) for field in left} == {field: cell(default(field)) for field in left}


def test_every_field_that_a_recipe_sets_has_a_source() -> None:
    assert unsourced(NAMES) == []


@pytest.mark.parametrize(
    ("name", "field", "source"),
    [
        ("deit_small", "optim.lr", "Table 9: 0.0005 x batch / 512"),  # beside it
        ("deit_base", "optim.lr", "Table 9: 0.0005 x batch / 512"),  # of the recipe that it replaces
        ("deit_small_distilled", "model.name", "a second token and head; 22,436,432 parameters"),  # above its group
        ("teacher_regnety4gf", "optim.lr", "not stated: DeiT's"),  # of a group as it is, said anew
        ("deit3_base_224", "optim.weight_decay", "README_revenge.md, ViT-B at 224 px"),  # above the recipe
        ("deit3_small_in21k", "mix.loss", "no mixup; cross-entropy with soft targets: no --bce-loss"),  # a group anew
    ],
)
def test_a_source_is_the_nearest_comment(name: str, field: str, source: str) -> None:
    assert sources(name)[field] == source
