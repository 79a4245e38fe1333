"""`vitrail recipes`: the recipes that come with Vitrail, and a copy of one to change."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Final

import tyro
from rich.console import Console
from rich.table import Table

from launch.recipe_files import recipe_file, recipe_names
from launch.verb import Json, Verb
from pipeline.data.order import order_of
from shards.errors import BadRequest, harmless
from shards.terminal import plain

DATA_SETS: Final = {  # by classes and training images
    (1000, 1_281_167): "ImageNet-1k",
    (21_841, 14_197_122): "ImageNet-21k",
    (10, 50_000): "CIFAR-10",
    (100, 50_000): "CIFAR-100",
    (10, 1437): "digits",
    (102, 6149): "Flowers-102",
    (8142, 437_513): "iNaturalist 2018",
    (1010, 265_240): "iNaturalist 2019",
}
WIDE: Final = 120  # columns of a terminal
EXPECTED: Final = re.compile(r"\bExpect (.*?)\.(?=\s|$)", re.DOTALL)  # in a recipe's docstring


@dataclass(frozen=True)
class Listed:
    """What a list says of a recipe."""

    name: str
    model: str
    img_size: int  # pixels
    data: str
    epochs: int
    views: int  # training images that a run shows: what it costs, beside the model
    expected: str  # accuracy, and where that is from; empty where nobody says one
    file: str


@dataclass(frozen=True, kw_only=True)
class ListRecipes(Verb):
    """List the recipes: model, data, expected accuracy, and cost in training views (an image shown once is one).

    Hours on a cluster follow from images/s: `vitrail plan`.

    Example: vitrail recipes list distilled
    """

    pattern: tyro.conf.Positional[str] = ""
    """Part of a recipe's name, model or data; all, if there is none"""
    json: Json = False  # for scripts, instead of a table

    def __call__(self) -> int:
        """Print a table, or JSON for scripts."""
        wanted = self.pattern.lower()
        found = [recipe for recipe in listed() if wanted in f"{recipe.name} {recipe.model} {recipe.data}".lower()]
        if not found:
            raise BadRequest.of("pattern", f"{self.pattern}: no recipe is called so; `vitrail recipes` lists all.")
        if self.json:
            print(json.dumps([asdict(recipe) for recipe in found], indent=2))
        else:
            show(found)
        return 0


@dataclass(frozen=True, kw_only=True)
class CopyRecipe(Verb):
    """Put a recipe's file beside you, to change it. Nothing is overwritten.

    Example: vitrail recipes copy deit_small --output mine.py
    """

    name: tyro.conf.Positional[str]
    """Of the recipe"""
    output: Path | None = None  # file to write; NAME.py here, if none is named

    def __call__(self) -> int:
        """Write the copy, and say how it is run."""
        source, _ = recipe_file(self.name)
        target = self.output or Path(source.name)
        if target.suffix != ".py":
            raise BadRequest.of("output", f"--output {target}: a recipe is a file of Python; name a .py.")
        if target.exists():
            raise BadRequest.of("output", f"{target} is there already; name another with --output, or remove it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        print(harmless(f"{target}\nRun it: accelerate launch {target} --data DIR --output OUT"))
        return 0


@dataclass(frozen=True, kw_only=True)
class Recipes(Verb):
    """List the recipes that come with Vitrail, or put one beside you.

    Example: vitrail recipes
    """

    do: Annotated[ListRecipes, tyro.conf.subcommand("list")] | Annotated[CopyRecipe, tyro.conf.subcommand("copy")] = (
        field(default_factory=ListRecipes)
    )

    def __call__(self) -> int:
        """Do it."""
        return self.do()


VERB: Final = Recipes


def listed() -> Iterator[Listed]:
    """Yield the recipes by name."""
    for name in recipe_names():
        path, recipe = recipe_file(name)
        data = recipe.data
        yield Listed(
            name=name,
            model=recipe.model.name,
            img_size=recipe.model.img_size,
            data=DATA_SETS.get((data.classes, data.images), f"{data.images:,} images, {data.classes} classes"),
            epochs=recipe.epochs,
            views=recipe.epochs * recipe.batch * order_of(recipe, (data.images,)).steps_per_epoch,
            expected=expected(path),
            file=str(path),
        )


def expected(path: Path) -> str:
    """Return what the docstring of a recipe's file says to expect; empty where it says nothing of it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = EXPECTED.search(text)
    return " ".join(found[1].split()) if found else ""


def show(recipes: Sequence[Listed]) -> None:
    """Print recipes as a table; where it is narrow, without the models."""
    console, table = Console(), Table(box=None)
    with_models = console.width >= WIDE
    table.add_column("recipe", no_wrap=True)
    if with_models:
        table.add_column("model", overflow="fold")
    table.add_column("data")
    table.add_column("epochs", justify="right")
    table.add_column("views", justify="right", no_wrap=True)
    table.add_column("expected")
    for recipe in recipes:
        accuracy = re.split(r" \(|, ", recipe.expected)[0] or "no figure"  # more, and its source, stand in the file
        views = f"{recipe.views / 1e9:.2f} G" if recipe.views >= 1e9 else f"{recipe.views / 1e6:.3g} M"
        model = [recipe.model] if with_models else []
        table.add_row(*map(plain, (recipe.name, *model, recipe.data, recipe.epochs, views, accuracy)))
    console.print(table)
    print("Train one: accelerate launch -m recipes.NAME --data DIR --output OUT\nChange one: vitrail recipes copy NAME")
