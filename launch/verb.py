"""What the verbs of `vitrail` share.  A verb is a dataclass: its fields are its options, a call does what it is for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import tyro

from launch.recipe_files import load_recipe
from pipeline.config import EngineName
from pipeline.fields import flag
from pipeline.request import Request, parse
from shards.errors import BadRequest, Problem

if TYPE_CHECKING:
    from pipeline.hosting import Hosting
    from pipeline.job import Job, Need

Json = tyro.conf.FlagCreatePairsOff[bool]
CONFIGS: Final = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb that takes its own options alone."""

    def __call__(self) -> int:
        """Do it, and return the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RecipeVerb:
    """A verb that works on a recipe, and takes the recipe's own fields beside its options."""

    reads: ClassVar[Sequence[str]] = ("--data",)  # of the flags of a run; the others are refused

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""

    def __call__(self, arguments: list[str]) -> int:
        """Do it for the recipe with the fields that the arguments change, and return the exit code."""
        raise NotImplementedError

    def request(self, arguments: list[str]) -> Request:
        """Return what the arguments ask for of the recipe."""
        return parse(load_recipe(self.recipe), arguments, verb_flags=flags(self), reads=self.reads)


def flags(verb: Verb | RecipeVerb) -> Sequence[str]:
    """Return a verb's own flags."""
    return [f"--{flag(item.name)}" for item in fields(verb) if item.name != "recipe"]


def resolved(request: Request, need: "Need", hosting: "Hosting | None" = None, found: Sequence[Problem] = ()) -> "Job":
    """Return the job of a request, of whose verb's own options these problems were found.

    Raises BadRequest with all that is wrong.
    """
    from pipeline.job import resolve  # with torch and timm, which the verbs of shards do without

    try:
        job = resolve(request, need, hosting)
    except BadRequest as error:
        raise BadRequest([*found, *error.problems]) from error
    if found:
        raise BadRequest(found)
    return job


def config_file(name: str) -> Path:
    """Return one of launch/configs, for `accelerate launch`.  Raises BadRequest if there is no such one."""
    path = CONFIGS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.yaml")))
        raise BadRequest.of("config", f"--config {name}: not one of {known}.")
    return path


def engine_named(name: str) -> tuple[EngineName, list[Problem]]:
    """Return the engine of one of launch/configs, and what is wrong with the name."""
    from pipeline.hosting import engine_of_config

    try:
        return engine_of_config(config_file(name)), []
    except BadRequest as error:
        return "ddp", error.problems
