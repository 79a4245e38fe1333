"""`vitrail ladder`: one data set, one model, several fine-tuning strategies, and what each costs and gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from accelerate.utils import wait_for_everyone
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from launch.verb import RecipeVerb
from pipeline.config import Finetune, Recipe
from pipeline.folder import Summary
from pipeline.job import TRAINING, Job, resolve
from pipeline.request import OWN_FLAGS, Request
from pipeline.rules import has_frozen_prefix
from pipeline.session.session import DONE, run_job
from shards.errors import BadRequest, Problem, harmless
from shards.files import read_json, write_json
from shards.terminal import plain

RUNGS: Final = ("linear", "partial-1/2", "partial-1", "partial-2", "full", "gradual")
CONFIDENCE: Final = 0.95  # of the interval that the mean over seeds lies in


@dataclass(frozen=True)
class Rung:
    """What a strategy gave, over its seeds: top-1 in [0, 1] of the raw weights, parameters, seconds of a whole run."""

    strategy: str
    trained: int
    top1: float  # mean
    interval: float | None  # half of it, by Student's t; None of one seed
    seconds: float  # mean
    seeds: Mapping[int, float]  # top-1 of each


@dataclass(frozen=True, kw_only=True)
class Ladder(RecipeVerb):
    """Fine-tune with several strategies on one data set: accuracy against trained parameters and seconds.

    Takes the recipe's own fields too: --data, --output, --model.weights, --epochs, ...

    Example: vitrail ladder partial_k_cifar10 --data DIR --output OUT --rungs linear full
    """

    reads = tuple(name for name in OWN_FLAGS if name != "--dry-run")

    rungs: tuple[str, ...] = RUNGS  # values of --finetune.strategy
    seeds: tuple[int, ...] = ()  # each strategy is run with each of them; the recipe's alone, if none is named

    def __call__(self, arguments: list[str]) -> int:
        """Run what is not run yet, print the table, and draw ladder.png."""
        return climb(self.request(arguments), self.rungs, self.seeds)


VERB: Final = Ladder


def climb(request: Request, strategies: tuple[str, ...], seeds: tuple[int, ...] = ()) -> int:
    """Run a recipe with each strategy and seed under the request's folder, and compare; return the last exit code.

    Raises BadRequest with all that is wrong with any of them, before the first one is run.
    """
    jobs: dict[str, list[Job]] = {}
    found: list[Problem] = []
    for strategy, seed in product(strategies, seeds or (request.recipe.seed,)):
        folder = strategy.replace("/", "_") + (f"-seed-{seed}" if seeds else "")
        recipe = replace(on_rung(request.recipe, strategy), seed=seed)
        try:
            job = resolve(replace(request, recipe=recipe, output=str(request.folder / folder)), TRAINING)
            jobs.setdefault(strategy, []).append(job)
        except BadRequest as error:
            found += [problem for problem in error.problems if problem not in found]
    first = next(iter(jobs.values()), [None])[0]
    if first and first.dataset and first.dataset.evaluation_split() is None:
        found.append(Problem("data", f"{request.data} has no split `val` or `test` to compare on."))
    if found:
        raise BadRequest(found)
    whole = [strategy for strategy in jobs if not has_frozen_prefix(strategy)]
    if request.recipe.finetune.cache and whole:
        print(harmless(f"{', '.join(whole)}: without --finetune.cache, as no first part of the network stays as it is"))
    for job in chain.from_iterable(jobs.values()):
        code = run_job(job)
        if code != DONE:
            return code
    wait_for_everyone()  # the main process writes a run's summary
    if first and not first.hosting.main:
        return DONE
    rungs = [reached(strategy, of_strategy) for strategy, of_strategy in jobs.items()]
    write_json(request.folder / "ladder.json", [asdict(rung) for rung in rungs])
    show(rungs, request.folder)
    return DONE


def reached(strategy: str, jobs: Sequence[Job]) -> Rung:
    """Return what the finished runs of a strategy gave, one a seed."""
    scores, seconds = {}, []
    for job in jobs:
        summary = read_json(job.folder.summary, Summary)
        assert summary["top1"] is not None, "there is a split to compare on"
        scores[job.recipe.seed] = summary["top1"]
        seconds.append(summary["wall_seconds"])
    values = list(scores.values())
    return Rung(strategy, jobs[0].trained_parameters, fmean(values), interval(values), fmean(seconds), scores)


def interval(values: Sequence[float]) -> float | None:
    """Return how far from their mean the true one lies at most, with so much confidence; None of one value."""
    if len(values) < 2:
        return None
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))


def on_rung(recipe: Recipe, strategy: str) -> Recipe:
    """Return the recipe with a strategy; gradual trains the head alone for half of the epochs, if nothing is said.

    Where a strategy leaves no first part as it is, nothing of it is cached.
    """
    cache = recipe.finetune.cache if has_frozen_prefix(strategy) else ""
    head_epochs, head_lr = 0.0, Finetune().head_lr
    if strategy == "gradual":
        head_epochs, head_lr = recipe.finetune.head_epochs or recipe.epochs / 2, recipe.finetune.head_lr
    finetune = replace(recipe.finetune, strategy=strategy, head_epochs=head_epochs, head_lr=head_lr, cache=cache)
    return replace(recipe, finetune=finetune)


def show(rungs: Sequence[Rung], folder: Path) -> None:
    """Print the table and draw `ladder.png`."""
    several = len(rungs[0].seeds) > 1
    of_seeds = f"{len(rungs[0].seeds)} seeds, {CONFIDENCE:.0%} intervals" if several else ""
    table = Table(title=plain(f"{folder}: strategies"), caption=of_seeds or None)
    for column in ("strategy", "trained parameters", "top-1", "seconds"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for rung in rungs:
        spread = "" if rung.interval is None else f" ± {rung.interval:.4f}"
        row = (rung.strategy, f"{rung.trained:,}", f"{rung.top1:.4f}{spread}", f"{rung.seconds:.0f}")
        table.add_row(*map(plain, row))
    Console().print(table)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, label, values in (
        (axes[0], "trained parameters", [rung.trained for rung in rungs]),
        (axes[1], "seconds of training", [rung.seconds for rung in rungs]),
    ):
        bars = [rung.interval or 0.0 for rung in rungs]
        axis.errorbar(values, [rung.top1 for rung in rungs], bars, fmt="o", capsize=3 if several else 0)
        for rung, value in zip(rungs, values, strict=True):
            where = {"xy": (value, rung.top1), "textcoords": "offset points", "xytext": (4, 4)}
            axis.annotate(harmless(rung.strategy), **where, fontsize=8, parse_math=False)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("top-1 on held-out images")
    figure.suptitle(of_seeds, fontsize=9)
    figure.savefig(folder / "ladder.png", dpi=110)
    print(harmless(folder / "ladder.png"))
