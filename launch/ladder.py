"""`vitrail ladder`: one data set, one model, several fine-tuning strategies, and what each costs and gives."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from launch.verb import RecipeVerb
from pipeline.config import Recipe
from pipeline.job import TRAINING, Job, resolve
from pipeline.request import Request
from pipeline.session.session import DONE, run_job
from shards.errors import BadRequest, Problem
from shards.files import read_json, write_json

RUNGS: Final = ("linear", "partial-1/2", "partial-1", "partial-2", "full", "gradual")


@dataclass(frozen=True)
class Rung:
    """What a strategy gave: top-1 in [0, 1] of the raw weights, parameters, seconds of the whole run."""

    strategy: str
    trained: int
    top1: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ladder(RecipeVerb):
    """Fine-tune with several strategies on one data set: accuracy against trained parameters and seconds.

    Takes the recipe's own fields too: --data, --output, --model.weights, --epochs, ...
    """

    rungs: tuple[str, ...] = RUNGS  # values of --finetune.strategy

    def __call__(self, arguments: list[str]) -> int:
        """Run what is not run yet, print the table, and draw ladder.png."""
        return climb(self.request(arguments), self.rungs)


VERB: Final = Ladder


def climb(request: Request, strategies: tuple[str, ...]) -> int:
    """Run a recipe with each strategy under the request's folder, and compare; return the exit code of the last run.

    Raises BadRequest with all that is wrong with any of them, before the first one is run.
    """
    jobs: list[Job] = []
    found: list[Problem] = []
    for strategy in strategies:
        output = str(request.folder / strategy.replace("/", "_"))
        rung = replace(request, recipe=on_rung(request.recipe, strategy), output=output)
        try:
            jobs.append(resolve(rung, TRAINING))
        except BadRequest as error:
            found += [problem for problem in error.problems if problem not in found]
    if jobs and jobs[0].dataset and jobs[0].dataset.evaluation_split() is None:
        found.append(Problem("data", f"{request.data} has no split `val` or `test` to compare on."))
    if found:
        raise BadRequest(found)
    rungs = []
    for job in jobs:
        code = run_job(job)
        if code != DONE:
            return code
        summary = read_json(job.folder.summary)
        strategy = job.recipe.finetune.strategy
        rungs.append(Rung(strategy, job.trained_parameters, summary["top1"], summary["wall_seconds"]))
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
