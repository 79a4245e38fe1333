"""`vitrail recipes` lists every recipe with what its file says, and copies one that runs."""

import json
import os
import stat
from pathlib import Path

import pytest

from launch.recipe_files import load_recipe, recipe_file, recipe_names
from launch.recipes import expected
from tests.running import vitrail


def test_every_recipe_is_listed_with_model_data_cost_and_accuracy() -> None:
    found = {recipe["name"]: recipe for recipe in json.loads(vitrail("recipes", "list", "--json").stdout)}
    assert sorted(found) == recipe_names()
    small = found["deit_small"]
    assert (small["model"], small["data"], small["epochs"]) == ("deit_small_patch16_224", "ImageNet-1k", 300)
    assert small["views"] == 300 * 1251 * 1024
    assert small["expected"] == "79.8 % top-1 (Table 3; 79.854 % for the released weights)"
    assert found["deit_digits"]["data"] == "digits"
    assert found["deit_small_384"]["expected"] == ""


def test_a_list_is_a_table_of_a_line_a_recipe() -> None:
    shown = vitrail("recipes").stdout
    assert all(name in shown for name in recipe_names())
    assert "accelerate launch -m recipes.NAME" in shown
    few = vitrail("recipes", "list", "inat").stdout
    assert "transfer_inat18" in few
    assert "deit_small" not in few
    assert "nothing_such: no recipe is called so" in vitrail("recipes", "list", "nothing_such", code=2).stderr


def test_what_a_docstring_does_not_say_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text('"""Mine.\n\nExpect 0.39 top-1\nafter 5 epochs.  Not run here.\n"""\n')
    assert expected(tmp_path / "mine.py") == "0.39 top-1 after 5 epochs"
    (tmp_path / "bare.py").write_text("X = 1\n")
    assert expected(tmp_path / "bare.py") == ""


def test_a_copy_is_the_recipe_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Run it: accelerate launch deit_small.py" in vitrail("recipes", "copy", "deit_small").stdout
    assert Path("deit_small.py").read_bytes() == recipe_file("deit_small")[0].read_bytes()
    assert load_recipe("./deit_small.py") == load_recipe("deit_small")
    assert stat.S_IMODE(os.stat("deit_small.py").st_mode) & 0o200  # to be changed, wherever it came from
    assert "deit_small.py is there already" in vitrail("recipes", "copy", "deit_small", code=2).stderr
    vitrail("recipes", "copy", "deit_small", "--output", "with space/mine.py")
    assert load_recipe("with space/mine.py").name == "deit_small"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deit_smal",), "deit_smal: no such recipe or file. Recipes: deit_small"),
        (("deit_small", "--output", "mine.txt"), "a recipe is a file of Python; name a .py"),
    ],
)
def test_a_copy_that_cannot_be_is_refused(arguments: tuple[str, ...], words: str, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert words in vitrail("recipes", "copy", *arguments, code=2).stderr
    assert not list(tmp_path.iterdir())
