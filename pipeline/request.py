"""What a command line asks for: parsed, and not judged yet (`pipeline/job.py` does that)."""

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from pipeline.config import FIELDS, LOCAL_DIR, Recipe
from pipeline.fields import flag
from pipeline.tyro_internals import obey_no_color
from shards.errors import BadRequest, Problem

OWN_FLAGS: Final = ("--data", "--output", "--max-steps", "--resume", "--dry-run", "--trace-samples")
RENAMED: Final = {  # fields that had another name once
    "--model.checkpoint": "--model.weights",
    "--distill.checkpoint": "--distill.weights",
}
OF_LAUNCHERS: Final = (  # flags of `accelerate launch` and torchrun that people write behind the recipe
    *("--config-file", "--num-processes", "--num-machines", "--machine-rank", "--main-process-ip"),
    *("--main-process-port", "--multi-gpu", "--gpu-ids", "--mixed-precision", "--gradient-accumulation-steps"),
    *("--dynamo-backend", "--use-deepspeed", "--use-fsdp", "--nproc-per-node", "--nnodes"),
)
DASHES: Final = "-\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"  # pasted for a hyphen


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line asks for: a recipe, and where and how to run it."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = ""  # shards of ours or of others, or images; here, or a URL
    output: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""  # the run's folder; default: runs/RECIPE
    max_steps: int = 0  # stop after this step of the schedule; 0: at its end
    # auto: the newest checkpoint, if any; PATH: begin from this checkpoint, then the same
    resume: Annotated[str, tyro.conf.arg(metavar="auto|never|PATH")] = "auto"
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False  # rehearse on this machine: a few steps, their speed is kept
    trace_samples: tyro.conf.FlagCreatePairsOff[bool] = False  # write trace/rank-R.jsonl
    unknown: tyro.conf.Suppress[tuple[Problem, ...]] = field(default=())  # arguments that nothing would read

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output or f"runs/{self.recipe.name}")


def parse(
    recipe: Recipe,
    arguments: list[str],
    *,
    verb_flags: Sequence[str] = (),
    reads: Sequence[str] = OWN_FLAGS,
    speaks: bool = True,
) -> Request:
    """Return the request of a command line, of which a verb of `vitrail` has taken its own flags already.

    `reads` are those of OWN_FLAGS that mean something there.  Exits by itself for --help (0) and for values of a wrong
    type (2), with words where this process `speaks`.  Raises BadRequest for arguments that no parser should show.
    """
    refuse_control_characters(arguments)
    obey_no_color()
    request, unknown = tyro.cli(
        Request,
        default=Request(recipe=recipe),
        args=arguments,
        description=sys.modules["__main__"].__doc__,
        return_unknown_args=True,
        console_outputs=speaks,
    )
    known = [*verb_flags, *reads, *(f"--{flag(name)}" for name in FIELDS)]
    return replace(at_home(request), unknown=(*misspelt(unknown, known), *unread(request, reads)))


def at_home(value: Any) -> Any:
    """Return a value with `~` expanded at the start of every text and path in it.

    A shell does it for a word that begins with it, and nobody for `--data=~/x`, a launcher's arguments or a recipe.
    """
    if isinstance(value, str):
        mark = LOCAL_DIR if value.startswith(LOCAL_DIR) else ""
        return mark + os.path.expanduser(value.removeprefix(mark))
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: at_home(getattr(value, item.name)) for item in fields(value)})
    return value


def refuse_control_characters(arguments: Sequence[str]) -> None:
    """Raise BadRequest for arguments that hold any: they are no part of a name, and would end lines of scripts."""
    found = []
    for before, argument in pairwise(["", *arguments]):
        if any(unicodedata.category(char) == "Cc" for char in argument):
            said = f"{before} {argument!r}" if before.startswith("--") else repr(argument)
            name = said.strip("'-").partition(" ")[0].partition("=")[0]
            found.append(Problem(name, f"{said} holds a control character; leave it out, or rename what it names."))
    if found:
        raise BadRequest(found)


def unread(request: Request, reads: Sequence[str]) -> Iterator[Problem]:
    """Complain of a run's own flags that were given and that nothing reads."""
    for item in fields(Request):
        name = f"--{flag(item.name)}"
        if name in OWN_FLAGS and name not in reads and getattr(request, item.name) != item.default:
            yield Problem(item.name, f"{name}: nothing reads it here; leave it out.")


def misspelt(unknown: Sequence[str], known: Sequence[str]) -> Iterator[Problem]:
    """Complain of arguments that nobody took, with the nearest flag that there is."""
    for position, argument in enumerate(unknown):
        name, equals, value = argument.partition("=")
        meant = "--" + name.lstrip(DASHES).replace("_", "-")
        if name in RENAMED:
            yield Problem(name[2:], f"{name} is called {RENAMED[name]} now.")
        elif meant in OF_LAUNCHERS:
            yield Problem(meant[2:], f"{name} is for accelerate launch: it stands before the recipe, not behind it.")
        elif argument.startswith("--"):
            near = difflib.get_close_matches(name, known, n=1)
            yield Problem(name[2:], f"{name} is not known here" + (f"; did you mean {near[0]}?" if near else "."))
        elif meant in known and (equals or name[0] in DASHES):
            yield Problem(meant[2:], f"{argument!r} belongs to no flag; did you mean {meant}{equals}{value}?")
        elif not argument.strip():
            yield Problem("", "an argument is blank: is there a blank behind a `\\` that should end its line?")
        elif position == 0:
            yield Problem("", f"{argument!r} belongs to no flag; --help lists all that can be said here.")
