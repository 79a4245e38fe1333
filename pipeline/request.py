"""What a command line asks for, and everything that is wrong with it, found before anything is built."""

import difflib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import tyro

from pipeline import checkpoint
from pipeline.batch_norm import BatchNorms
from pipeline.config import Recipe, flag, flatten, problems
from pipeline.finetune import rate_scales
from pipeline.hosting import engine_of_launch, processes_of_launch
from pipeline.models import on_paper, parameter_count
from pipeline.store import differences, fingerprint
from pipeline.teacher import check_teacher, teacher_weights
from shards.dataset import Dataset, read_dataset
from shards.errors import BadRequest, ShardError, StoreError

BYTES_A_PARAMETER: Final = 16  # of a checkpoint: weight, average and two moments, 4 bytes each


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line asks for: a recipe, and where and how to run it."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""  # folder that `vitrail shards build` made
    output: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""  # the run's folder; default: runs/RECIPE
    max_steps: int = 0  # stop after this step of the schedule; 0: at its end
    resume: Annotated[str, tyro.conf.arg(metavar="auto|never|PATH")] = "auto"  # PATH: one checkpoint folder
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = (
        False  # rehearse on this machine: a few steps, the speed alone is kept
    )
    trace_samples: tyro.conf.FlagCreatePairsOff[bool] = False  # write trace/rank-R.jsonl

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output or f"runs/{self.recipe.name}")


def parse(recipe: Recipe, arguments: list[str], *, speaks: bool = True) -> Request:
    """Return the request of a command line.

    Raises BadRequest for unknown fields; exits by itself for --help (0) and for values of a wrong type (2).
    """
    request, unknown = tyro.cli(
        Request,
        default=Request(recipe=recipe),
        args=arguments,
        description=sys.modules["__main__"].__doc__,
        return_unknown_args=True,
        console_outputs=speaks,
    )
    if not unknown:
        return request
    known = [f"--{flag(name)}" for name in flatten(recipe)] + [
        "--data", "--output", "--max-steps", "--resume", "--dry-run", "--trace-samples",
    ]  # fmt: skip
    found = []
    for argument in unknown:
        if argument.startswith("--"):
            name = argument.partition("=")[0]
            near = difflib.get_close_matches(name, known, n=1)
            found.append(f"{name} is not a field of this recipe" + (f"; did you mean {near[0]}?" if near else "."))
        elif unknown[0] == argument:
            found.append(f"{argument!r} belongs to no field.")
    raise BadRequest([*found, *check(request)[0]])


def check(request: Request, *, trains: bool = True) -> tuple[list[str], Dataset | None]:
    """Return all that is wrong with a request, and its data set; leaves nothing behind.

    A request that trains nobody, but fills a store, needs no output folder.
    """
    found, dataset = [], None
    processes, _ = processes_of_launch()
    if "://" in request.data:
        found.append(f"--data {request.data}: URLs are not read yet; copy the shards to a local folder and name that.")
    elif request.data:
        try:
            dataset = read_dataset(Path(request.data))
        except ShardError as error:
            found.append(f"--data {error}")
    elif not request.dry_run:
        found.append("--data is missing: name a folder that `vitrail shards build SOURCE DIR` made.")
    try:
        found += problems(request.recipe, dataset, processes, engine_of_launch())
    except BadRequest as error:
        found += error.problems
    if request.max_steps < 0:
        found.append(f"--max-steps is {request.max_steps}; it must not be negative.")
    found += _of_teacher(request, dataset) if not any("--distill." in problem for problem in found) else []
    parameters = 0
    recipe = request.recipe
    try:
        if not any("--model." in problem or "--data.classes is" in problem for problem in found):
            net = on_paper(recipe)
            parameters = parameter_count(net)
            rate_scales(net, recipe.finetune)  # they fit the model, or it is said here
            if recipe.micro_batch and BatchNorms(net):
                found.append(
                    f"--micro-batch {recipe.micro_batch}: {recipe.model.name} has batch norm, which is over a virtual "
                    f"rank's images; for smaller passes take more --virtual-ranks."
                )
    except BadRequest as error:
        found += error.problems
    if trains and not request.dry_run:
        found += _of_output(request, parameters)
    return found, dataset


def _of_teacher(request: Request, dataset: Dataset | None) -> list[str]:
    """Return what is wrong with the teacher, and with the store of its answers."""
    recipe = request.recipe
    distill = recipe.distill
    if not distill.teacher:
        return []
    try:
        # a rehearsal without the weights takes others: see `pipeline/rehearsal.py`
        if not request.dry_run or distill.checkpoint:
            check_teacher(recipe)
        if not distill.store or not dataset or "train" not in dataset.splits or request.dry_run:
            return []
        wanted = fingerprint(recipe, dataset.splits["train"].fingerprint, teacher_weights(distill))
        return differences(Path(distill.store), wanted)
    except BadRequest as error:
        return error.problems
    except StoreError as error:
        return [f"--distill.store {error}"]


def _of_output(request: Request, parameters: int) -> list[str]:
    """Return what is wrong with the output folder for a model of so many parameters, and with resuming there."""
    folder = request.folder
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:  # nothing is left behind of a request that is refused
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        return [f"--output {folder}: cannot be written to ({error.strerror})."]
    found = []
    needed = parameters * BYTES_A_PARAMETER * (request.recipe.checkpoint.keep + 1)
    if (free := shutil.disk_usage(there).free) < needed:
        found.append(
            f"--output {folder}: {free / 1e6:,.0f} MB are free, the run's checkpoints need {needed / 1e6:,.0f} MB "
            f"({request.recipe.checkpoint.keep} kept and one being written)."
        )
    saved = checkpoint.checkpoints(folder / "checkpoints")
    if request.resume == "never" and saved:
        found.append(f"--resume never: {folder} holds a run already (step {saved[0].name[5:]}); name another folder.")
    if request.resume not in ("auto", "never") and not (Path(request.resume) / "state.json").exists():
        found.append(f"--resume {request.resume}: no checkpoint there; name a folder checkpoints/step-NNNNNNNN.")
    return found
