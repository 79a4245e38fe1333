"""From the command line to a finished run: what every recipe hands its value to.

Exit codes: 0 done; 1 failed; 2 the request was wrong, all its problems listed; 75 stopped on request with a
checkpoint saved, start it again.
"""

import atexit
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import Final, NoReturn

import torch

from pipeline.config import Recipe
from pipeline.determinism import remedy
from pipeline.folder import gone
from pipeline.hosting import launched_process
from pipeline.job import REHEARSAL, TRAINING, resolve
from pipeline.library_internals import frame_of, has_returned
from pipeline.request import Request, parse
from pipeline.session.output import outlive_output
from pipeline.session.rehearsal import rehearse
from pipeline.session.session import FAILED, PARTS, WRONG, Parts, run_job
from shards.errors import BadRequest, VitrailError, harmless

SCRIPT: Final = frame_of(sys.modules["__main__"])  # None in an interpreter that runs none

CODE_FILE: Final = "VITRAIL_EXIT_CODE"  # in the environment

LOST: Final = (
    "lost another process of the run. See what that one said; one that says nothing was killed, most often for want of "
    "memory. Start the same command again to go on."
)
LOST_WORDS: Final = re.compile("gloo|Connection (closed|reset) by peer|Broken pipe")  # of errors without a type


def main(recipe: Recipe, *, parts: Parts = PARTS, adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> None:
    """Run a recipe as the command line asks, and exit.

    `adapt` changes what the command line makes of it, `parts` what the session is made of.
    """
    atexit.unregister(complain_of_unused_recipe)
    speaks = launched_process() == 0
    outlive_output()
    try:
        request = parse(recipe, sys.argv[1:], speaks=speaks)
        code = carry_out(replace(request, recipe=adapt(request.recipe)), parts)
    except BadRequest as error:
        code = WRONG
        if speaks or launched_process(local=True) == 0:  # what is missing may be missing on one node alone
            listed = "\n".join(f"  - {problem}" for problem in error.problems)
            print(harmless(f"{recipe.name}: the request cannot be run:\n{listed}"), file=sys.stderr)
    except (VitrailError, OSError) as error:
        code = FAILED
        print(harmless(f"{recipe.name}: {sentence(error)}"), file=sys.stderr)
    except Exception as error:  # a mistake of ours, or of the machine: printed in full, then ended like any other
        code = FAILED
        if way := remedy(error):
            print(f"{recipe.name}: {harmless(way)}", file=sys.stderr)
        if is_lost_process(error):
            print(f"{recipe.name}: process {launched_process()} {LOST}", file=sys.stderr)
        print(harmless(traceback.format_exc()), end="", file=sys.stderr)
    end(code)


def sentence(error: VitrailError | OSError) -> str:
    """Return what an error says; the system's tells neither what to do nor, in front, where."""
    if isinstance(error, VitrailError):
        return str(error)
    if isinstance(error, FileNotFoundError) and error.filename and not Path(error.filename).parent.exists():
        error = gone(Path(error.filename))  # what a request names was there at its start
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"{what}. Mend it, or make room where a disk is full, and start the same command again to go on."


def is_lost_process(error: Exception) -> bool:
    """Return whether an error is that of a collective operation whose other processes are not all there any more."""
    grouped = torch.distributed.is_initialized()
    return grouped and (isinstance(error, torch.distributed.DistError) or bool(LOST_WORDS.search(str(error))))


def end(code: int) -> NoReturn:
    """End the process, and at once where it could wait for good.

    That is for the other processes after an error in this one, and for a loader worker that no signal ends.
    """
    leave(code)
    sys.stdout.flush()
    sys.stderr.flush()
    grouped = torch.distributed.is_initialized()
    if active_children() or (grouped and code == FAILED):
        os._exit(code)
    if grouped:
        torch.distributed.destroy_process_group()
    sys.exit(code)


def leave(code: int) -> None:
    """Have process 0 leave its exit code in the file that the environment names: launchers make it 1 if it is not 0."""
    if (file := os.environ.get(CODE_FILE)) and launched_process() == 0:
        Path(file).write_text(f"{code}\n")


def carry_out(request: Request, parts: Parts = PARTS) -> int:
    """Do what a request asks and return the exit code.  Raises BadRequest with all that is wrong with it."""
    atexit.unregister(complain_of_unused_recipe)
    if request.dry_run:
        return rehearse(resolve(request, REHEARSAL))
    return run_job(resolve(request, TRAINING), parts)


@atexit.register
def complain_of_unused_recipe() -> None:
    """End a script that defined RECIPE and handed it to nobody with words and code 2: it did nothing.

    One that ended before its end, by an error or an exit, has said what it had to say.
    """
    script = sys.modules["__main__"]
    recipe = vars(script).get("RECIPE")
    others = [getattr(module, "__dict__", {}) for module in sys.modules.values() if module is not script]
    imported = any(other.get("RECIPE") is recipe for other in others)
    at_work = parent_process() or hasattr(sys, "ps1")  # a worker, a notebook
    if not isinstance(recipe, Recipe) or imported or at_work or not (SCRIPT and has_returned(SCRIPT)):
        return
    if launched_process() == 0:
        says = f"{sys.argv[0]}: defines RECIPE and does not run it. End the file with:"
        lines = ["", "from pipeline.run import main", "", 'if __name__ == "__main__":', "    main(RECIPE)"]
        print(harmless("\n".join([says, *lines])), file=sys.stderr)
    leave(WRONG)
    sys.stdout.flush()  # nobody does it from here on
    sys.stderr.flush()
    os._exit(WRONG)  # at exit no exception changes the code
