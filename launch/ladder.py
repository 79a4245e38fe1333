"""The ladder: one data set, one model, several fine-tuning strategies, and what each costs and gives."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe
from pipeline.finetune import by_part
from pipeline.models import on_paper
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.session import DONE
from shards.errors import BadRequest
from shards.files import write_json


@dataclass(frozen=True)
class Rung:
    """What a strategy gave: top-1 in [0, 1] of the raw weights, parameters, seconds of the whole run."""

    strategy: str
    trained: int
    top1: float
    seconds: float


def climb(request: Request, strategies: tuple[str, ...]) -> int:
    """Run a recipe with each strategy under the request's folder, and compare; return the exit code of the last run.

    Raises BadRequest with all strategies that the model does not take, before the first one is run.
    """
    recipes = [on_rung(request.recipe, strategy) for strategy in strategies]
    problems = []
    trained = []
    for recipe in recipes:
        try:
            trained.append(sum(some for some, _ in by_part(on_paper(recipe)).values()))
        except BadRequest as error:
            problems += error.problems
    if problems:
        raise BadRequest(problems)
    rungs = []
    for recipe, count in zip(recipes, trained, strict=True):
        strategy = recipe.finetune.strategy
        folder = request.folder / strategy.replace("/", "_")
        code = carry_out(replace(request, recipe=recipe, output=str(folder)))
        if code != DONE:
            return code
        summary = json.loads((folder / "summary.json").read_text())
        if summary["top1"] is None:
            raise BadRequest([f"{request.data} has no split `val` or `test` to compare on."])
        rungs.append(Rung(strategy, count, summary["top1"], summary["wall_seconds"]))
    write_json(request.folder / "ladder.json", [asdict(rung) for rung in rungs])
    show(rungs, request.folder)
    return DONE


def on_rung(recipe: Recipe, strategy: str) -> Recipe:
    """Return the recipe with a strategy; gradual trains the head alone for half of the epochs, if nothing is said."""
    head_epochs = (recipe.finetune.head_epochs or recipe.epochs / 2) if strategy == "gradual" else 0.0
    return replace(recipe, finetune=replace(recipe.finetune, strategy=strategy, head_epochs=head_epochs))


def show(rungs: list[Rung], folder: Path) -> None:
    """Print the table and draw `ladder.png`."""
    table = Table(title=f"{folder}: strategies")
    for column in ("strategy", "trained parameters", "top-1", "seconds"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for rung in rungs:
        table.add_row(rung.strategy, f"{rung.trained:,}", f"{rung.top1:.4f}", f"{rung.seconds:.0f}")
    Console().print(table)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, label, values in (
        (axes[0], "trained parameters", [rung.trained for rung in rungs]),
        (axes[1], "seconds of training", [rung.seconds for rung in rungs]),
    ):
        axis.scatter(values, [rung.top1 for rung in rungs])
        for rung, value in zip(rungs, values, strict=True):
            axis.annotate(rung.strategy, (value, rung.top1), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("top-1 on held-out images")
    figure.savefig(folder / "ladder.png", dpi=110)
    print(folder / "ladder.png")
