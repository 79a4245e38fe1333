"""Recipes by name or file: what is wrong with a file is said with its line."""

from pathlib import Path

import pytest

from launch.recipe_files import load_recipe, recipe_file
from recipes.deit_digits import RECIPE
from shards.errors import BadRequest

BASE = "from recipes.deit_digits import RECIPE as BASE\n"


def refusal(path: Path) -> str:
    """Return why a file is refused."""
    with pytest.raises(BadRequest) as caught:
        load_recipe(str(path))
    (problem,) = caught.value.problems
    assert problem.field == "recipe"
    return problem.sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("X = 1\ndef (\n", "mine.py, line 2: SyntaxError: invalid syntax"),
        ("\n\nimport nowhere\n", "mine.py, line 3: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{BASE}RECIPE = BASE.nothing\n", "mine.py, line 2: AttributeError: 'Recipe' object has no attribute"),
        (f"{BASE}RECIPE = BASE._replace(seed=1)\n", "mine.py, line 2: AttributeError"),
        ("import json\n\nRECIPE = json.loads('{')\n", "mine.py, line 3: JSONDecodeError"),
        ("import sys\nsys.exit()\n", "mine.py, line 2: SystemExit"),
        ("assert False\n", "mine.py, line 1: AssertionError"),
        ("def f():\n    f()\nf()\n", "mine.py, line 2: RecursionError"),
        ("", "mine.py: defines no RECIPE"),
        (f"{BASE}recipe = BASE\n", "mine.py: defines no RECIPE"),
        ("RECIPE = {'name': 'x'}\n", "mine.py: its RECIPE is of the type dict, not a `Recipe`"),
        ("from pipeline.config import Recipe as RECIPE\n", "mine.py: its RECIPE is of the type type"),
    ],
)
def test_a_file_that_is_no_recipe_says_where(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert words in refusal(path)


def test_what_is_no_file_of_python_is_refused(tmp_path: Path) -> None:
    assert "is no file of Python" in refusal(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04")
    assert "is no file of Python" in refusal(tmp_path / "weights.pth")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    assert "binary.py: SyntaxError" in refusal(tmp_path / "binary.py")
    (tmp_path / "latin.py").write_bytes("# Größe\n".encode("latin-1"))
    assert "latin.py" in refusal(tmp_path / "latin.py")


def test_a_recipe_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "a recipe.py"
    path.write_text(f"{BASE}RECIPE = BASE\n")
    assert recipe_file(str(path)) == (path, RECIPE)
    assert recipe_file("deit_digits")[1] == RECIPE
    assert recipe_file("deit_digits")[0].name == "deit_digits.py"


def test_a_file_may_use_modules_beside_it_and_classes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "shared_values.py").write_text("SEED = 7\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, replace\n"
        f"{BASE}from shared_values import SEED\n"
        "@dataclass\nclass Size:\n    side: int = 16\n"
        "RECIPE = replace(BASE, seed=SEED)\n"
    )
    assert load_recipe(str(tmp_path / "mine.py")).seed == 7


def test_a_file_named_as_a_package_hides_none(tmp_path: Path) -> None:
    for name in ("pipeline", "torch", "json"):
        (tmp_path / f"{name}.py").write_text(f"import json\nfrom pipeline.config import Recipe\n{BASE}RECIPE = BASE\n")
        assert load_recipe(str(tmp_path / f"{name}.py")) == RECIPE
