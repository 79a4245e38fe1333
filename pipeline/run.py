"""From the command line to a finished run: what every recipe hands its value to.

Exit codes: 0 done; 1 failed; 2 the request was wrong, all its problems listed; 75 stopped on request with a
checkpoint saved, start it again.
"""

import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline.config import Recipe
from pipeline.hosting import launched_process
from pipeline.job import REHEARSAL, TRAINING, resolve
from pipeline.request import Request, parse
from pipeline.session.rehearsal import rehearse
from pipeline.session.session import FAILED, PARTS, WRONG, Parts, run_job
from shards.errors import BadRequest, VitrailError


def main(recipe: Recipe, *, parts: Parts = PARTS, adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> None:
    """Run a recipe as the command line asks, and exit.

    `adapt` changes what the command line makes of it, `parts` what the session is made of.
    """
    speaks = launched_process() == 0
    try:
        request = parse(recipe, sys.argv[1:], speaks=speaks)
        code = carry_out(replace(request, recipe=adapt(request.recipe)), parts)
    except BadRequest as error:
        code = WRONG
        if speaks or launched_process(local=True) == 0:  # what is missing may be missing on one node alone
            listed = "\n".join(f"  - {problem}" for problem in error.problems)
            print(f"{recipe.name}: the request cannot be run:\n{listed}", file=sys.stderr)
    except (VitrailError, OSError) as error:
        code = FAILED
        print(f"{recipe.name}: {error}", file=sys.stderr)
    except Exception:  # a mistake of ours, or of the machine: printed in full, then ended like any other
        code = FAILED
        traceback.print_exc()
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)


def carry_out(request: Request, parts: Parts = PARTS) -> int:
    """Do what a request asks and return the exit code.  Raises BadRequest with all that is wrong with it."""
    if request.dry_run:
        return rehearse(resolve(request, REHEARSAL))
    return run_job(resolve(request, TRAINING), parts)
