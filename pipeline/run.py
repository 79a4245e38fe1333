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
from pipeline.hosting import processes_of_launch
from pipeline.rehearsal import rehearse
from pipeline.request import Request, check, parse
from pipeline.session import FAILED, WRONG, run_recipe
from shards.errors import BadRequest, VitrailError


def main(recipe: Recipe, adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> None:
    """Run a recipe as the command line asks, and exit.  `adapt` changes what the command line makes of it."""
    _, process = processes_of_launch()
    try:
        request = parse(recipe, sys.argv[1:], speaks=process == 0)
        code = carry_out(replace(request, recipe=adapt(request.recipe)))
    except BadRequest as error:
        code = WRONG
        if process == 0:
            listed = "\n".join(f"  - {problem}" for problem in error.problems)
            print(f"{recipe.name}: the request cannot be run:\n{listed}", file=sys.stderr)
    except (VitrailError, OSError) as error:
        code = FAILED
        print(f"{recipe.name}: {error}", file=sys.stderr)
    except Exception:  # a mistake of ours, or of the machine: told in full, then ended like any other
        code = FAILED
        traceback.print_exc()
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)


def carry_out(request: Request) -> int:
    """Do what a request asks and return the exit code.  Raises BadRequest with all that is wrong with it."""
    found, dataset = check(request)
    if found:
        raise BadRequest(found)
    if request.dry_run:
        return rehearse(request, dataset)
    assert dataset
    return run_recipe(request, dataset)
