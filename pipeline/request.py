"""What a command line asks for: parsed, and not judged yet (`pipeline/job.py` does that)."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

import tyro

from pipeline.config import FIELDS, Recipe
from pipeline.fields import flag
from shards.errors import Problem

OWN_FLAGS: Final = ("--data", "--output", "--max-steps", "--resume", "--dry-run", "--trace-samples")
RENAMED: Final = {  # fields that had another name once
    "--model.checkpoint": "--model.weights",
    "--distill.checkpoint": "--distill.weights",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line asks for: a recipe, and where and how to run it."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""  # folder that `vitrail shards build` made
    output: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""  # the run's folder; default: runs/RECIPE
    max_steps: int = 0  # stop after this step of the schedule; 0: at its end
    resume: Annotated[str, tyro.conf.arg(metavar="auto|never|PATH")] = "auto"  # auto: the newest checkpoint, if any
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False  # rehearse on this machine: a few steps, their speed is kept
    trace_samples: tyro.conf.FlagCreatePairsOff[bool] = False  # write trace/rank-R.jsonl
    unknown: tyro.conf.Suppress[tuple[Problem, ...]] = field(default=())  # arguments that belong to no field

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output or f"runs/{self.recipe.name}")


def parse(recipe: Recipe, arguments: list[str], *, verb_flags: Sequence[str] = (), speaks: bool = True) -> Request:
    """Return the request of a command line, of which a verb of `vitrail` has taken its own flags already.

    Exits by itself for --help (0) and for values of a wrong type (2), with words where this process `speaks`.
    """
    request, unknown = tyro.cli(
        Request,
        default=Request(recipe=recipe),
        args=arguments,
        description=sys.modules["__main__"].__doc__,
        return_unknown_args=True,
        console_outputs=speaks,
    )
    known = [*verb_flags, *OWN_FLAGS, *(f"--{flag(name)}" for name in FIELDS)]
    return replace(request, unknown=tuple(misspelt(unknown, known)))


def misspelt(unknown: Sequence[str], known: Sequence[str]) -> Iterator[Problem]:
    """Complain of arguments that nobody took, with the nearest flag that there is."""
    for position, argument in enumerate(unknown):
        name = argument.partition("=")[0]
        if name in RENAMED:
            yield Problem(name[2:], f"{name} is called {RENAMED[name]} now.")
        elif argument.startswith("--"):
            near = difflib.get_close_matches(name, known, n=1)
            yield Problem(name[2:], f"{name} is not known here" + (f"; did you mean {near[0]}?" if near else "."))
        elif position == 0:
            yield Problem("", f"{argument!r} belongs to no flag.")
