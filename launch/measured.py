"""What benchmarks share: arms that run in turn in one process, what is made of their speeds, and how it is told.

Each round times every arm once, and a ratio is the median over the rounds.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeVar

import psutil
import torch
from rich.console import Console
from rich.table import Table

from launch.verb import Json, RecipeVerb, resolved
from pipeline.config import Distill, Precision, Recipe
from pipeline.job import MEASURING, Job
from shards.errors import Problem
from shards.parallel import allowed_cores
from shards.terminal import plain

T = TypeVar("T")
ROUNDS: Final = 7
IMAGES_ON_CPU: Final = 16  # of a step, where there is no accelerator
ALL_CORES: Final = allowed_cores()  # before any are left to others (`bench.pin`)
LOOK_S: Final = 0.4  # for how long one looks whether the machine is used
STILL: Final = 0.15  # of a core, all processes together: less is nothing but waiting


@dataclass(frozen=True, kw_only=True)
class Bench(RecipeVerb):
    """A benchmark of a recipe."""

    json: Json = False  # for scripts, instead of a table

    def small(self, recipe: Recipe) -> Recipe:
        """Return the recipe that is measured."""
        return alone(recipe, "fp32")

    def job(self, arguments: list[str], found: list[Problem] | None = None) -> Job:
        """Return what is measured: one virtual rank, on data that is made up where none is named.

        Raises BadRequest with what was `found` wrong in the verb's own options, and in all else.
        """
        request = self.request(arguments)
        return resolved(replace(request, recipe=self.small(request.recipe)), MEASURING, found=found or ())

    def tell(self, *results: Any) -> int:
        """Print dataclasses: each by its `show`, or all as one JSON list of their fields."""
        if self.json:
            print(json.dumps([asdict(result) for result in results]))
        else:
            for result in results:
                result.show()
        return 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Speeds of arms, side by side."""

    what: str
    speeds: dict[str, list[float]]  # by arm and round
    ratios: dict[str, float]  # "arm / other arm": median over the rounds
    notes: dict[str, str]  # by arm
    n: int  # rounds
    unit: str = "images/s"
    machine: str = platform.processor() or platform.machine()
    torch: str = torch.__version__

    def show(self) -> None:
        """Print the speeds as a table, the ratios below."""
        console = Console()
        console.print(spread(f"{self.what}; {self.unit}, {self.n} rounds in turn", "arm", self.speeds, 1, self.notes))
        for names, ratio in self.ratios.items():
            console.print(plain(f"{names}: {ratio:.3f}"))


def spread(
    title: str, head: str, numbers: Mapping[str, list[float]], digits: int, notes: Mapping[str, str] | None = None
) -> Table:
    """Return a table of the median, the lowest and the highest of the numbers of each name."""
    table = Table(title=plain(title))
    for column in (head, "median", "lowest", "highest", ""):
        table.add_column(column, justify="left" if column in (head, "") else "right")
    for name, values in numbers.items():
        shown = (f"{number:.{digits}f}" for number in (statistics.median(values), min(values), max(values)))
        table.add_row(*map(plain, (name, *shown, (notes or {}).get(name, ""))))
    return table


def in_turn(
    what: str, arms: Mapping[str, Callable[[], float]], over: str, notes: dict[str, str] | None = None
) -> Measured:
    """Run the arms in turn, each for its images/s; their ratios are those of every arm over the arm `over`."""
    return compared(what, rounds_of(arms), over, notes or {})


def rounds_of(arms: Mapping[str, Callable[[], T]]) -> list[dict[str, T]]:
    """Run the arms in turn, once without counting, and return what each round gave."""
    return [{name: arm() for name, arm in arms.items()} for _ in range(ROUNDS + 1)][1:]


def compared(
    what: str, rounds: list[dict[str, float]], over: str, notes: dict[str, str], unit: str = "images/s"
) -> Measured:
    """Return the speeds of arms by round, with the ratios of every arm over the arm `over`."""
    arms = list(rounds[0])
    ratios = {
        f"{name} / {over}": statistics.median(speeds[name] / speeds[over] for speeds in rounds)
        for name in arms
        if name != over
    }
    speeds = {name: [speeds[name] for speeds in rounds] for name in arms}
    return Measured(what=what, speeds=speeds, ratios=ratios, notes=notes, n=len(rounds), unit=unit)


def alone(recipe: Recipe, precision: Precision) -> Recipe:
    """Return a recipe as one virtual rank trains it, without published weights and without a teacher."""
    images = recipe.rank_batch if torch.accelerator.is_available() else min(recipe.rank_batch, IMAGES_ON_CPU)
    return replace(
        recipe,
        batch=images,
        virtual_ranks=1,
        epochs=10_000,
        precision=precision,
        model=recipe.model.from_scratch,
        distill=Distill(),
        finetune=replace(recipe.finetune, cache=""),
        data=replace(recipe.data, subset=0),
        checkpoint=replace(recipe.checkpoint, every_steps=0, every_minutes=0.0),
        eval=replace(recipe.eval, every_epochs=0),
    )


def cpu_seconds() -> float:
    """Return the processor time that this process and its loader workers have had so far, seconds of a core."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))


def settled() -> None:
    """Wait until loader workers have prepared all that they may, so that no arm computes beside another's."""
    used = STILL * LOOK_S
    while used >= STILL * LOOK_S:
        before = cpu_seconds()
        time.sleep(LOOK_S)
        used = cpu_seconds() - before
