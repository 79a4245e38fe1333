"""Recipes by name or file."""

import difflib
import importlib.util
import pkgutil
from pathlib import Path

import recipes
from pipeline.config import Recipe
from shards.errors import BadRequest


def load_recipe(name: str) -> Recipe:
    """Return the RECIPE of `recipes/NAME.py`, or of a file of the user's.  Raises BadRequest if there is none."""
    return recipe_file(name)[1]


def recipe_file(name: str) -> tuple[Path, Recipe]:
    """Return the file of a recipe, and the recipe.  Raises BadRequest if there is none."""
    known = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    path = Path(recipes.__path__[0]) / f"{name}.py" if name in known else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=3) or known
        raise BadRequest.of("recipe", f"{name}: no such recipe or file. Recipes: {', '.join(near)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise BadRequest.of("recipe", f"{path}: defines no RECIPE.")
    return path, recipe
