"""Recipes by name or file."""

import difflib
import pkgutil
import runpy
import sys
import traceback
from pathlib import Path

import recipes
from pipeline.config import Recipe
from shards.errors import BadRequest


def shipped_recipes() -> list[str]:
    """Return the names of Vitrail's own recipes."""
    return [module.name for module in pkgutil.iter_modules(recipes.__path__)]


def load_recipe(name: str) -> Recipe:
    """Return the RECIPE of `recipes/NAME.py`, or of a file of the user's.  Raises BadRequest if there is none."""
    return recipe_file(name)[1]


def recipe_file(name: str) -> tuple[Path, Recipe]:
    """Return the file of a recipe, and the recipe.  Raises BadRequest if there is none."""
    known = shipped_recipes()
    path = Path(recipes.__path__[0]) / f"{name}.py" if name in known else Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, known, n=3) or known
        raise BadRequest.of("recipe", f"{name}: no such recipe or file. Recipes: {', '.join(near)}")
    if not path.is_file() or path.suffix != ".py":
        raise BadRequest.of("recipe", f"{path}: is no file of Python (.py) that defines RECIPE.")
    try:
        recipe = defined_in(path).get("RECIPE")
    except (Exception, SystemExit) as error:
        raise BadRequest.of(
            "recipe", f"{_where(error, path)}: {_what(error)}. A recipe is read by running it."
        ) from error
    if recipe is None:
        raise BadRequest.of("recipe", f"{path}: defines no RECIPE. It must be a `Recipe` of pipeline/config.py.")
    if not isinstance(recipe, Recipe):
        kind = type(recipe).__name__
        raise BadRequest.of(
            "recipe", f"{path}: its RECIPE is of the type {kind}, not a `Recipe` of pipeline/config.py."
        )
    return path, recipe


def defined_in(path: Path) -> dict[str, object]:
    """Return what a file of Python defines; as by `python FILE`, it finds modules that lie beside it."""
    beside = str(path.resolve().parent)
    sys.path.append(beside)  # last, so that none of them stands in for ours
    try:
        return runpy.run_path(str(path), run_name="__recipe__")
    finally:
        sys.path.remove(beside)


def _where(error: BaseException, path: Path) -> str:
    """Return the file and line of a recipe that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _what(error: BaseException) -> str:
    """Return what happened, in a line."""
    says = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {says.strip()}" if says.strip() else type(error).__name__
