"""The job: all that is known of a request before the first tensor exists.

A request is resolved once. Resolving finds everything that is wrong and says it at once; whatever runs, runs a job and
asks nobody again.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline import checkpoint
from pipeline.config import Recipe, identity
from pipeline.data.order import Order, order_of
from pipeline.data.version import views_version
from pipeline.errors import StoreError
from pipeline.fingerprints import DATA, START, TEACHER, VIEWS, unchanged_sha256
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting, hosting_of_launch
from pipeline.model.batch_norm import BatchNorms
from pipeline.model.build import on_meta, unknown_model
from pipeline.model.finetune import parameters_by_part, rate_scales
from pipeline.request import Request
from pipeline.rules import data_problems, hosting_problems, recipe_problems, split_problems
from pipeline.teacher.store import differences, store_fingerprint
from pipeline.teacher.teacher import check_teacher, weights_file
from pipeline.update.schedule import Schedule
from shards.dataset import Dataset, read_dataset
from shards.errors import BadRequest, Problem, ShardError
from shards.index import Index

BYTES_A_PARAMETER: Final = 16  # of a checkpoint: weight, average and two moments, 4 bytes each


class Need(NamedTuple):
    """What must be there for what is asked for."""

    model: bool = True  # that it can be built, and fits the data
    data: bool = False  # a data set
    output: bool = False  # a folder that takes a run's checkpoints
    start: bool = False  # a file of weights that the model starts from, where one is named
    weights: bool = False  # a teacher's, published or in a file
    store: bool = False  # of teacher outputs, where one is named


TRAINING: Final = Need(data=True, output=True, start=True, weights=True, store=True)
FILLING: Final = Need(data=True, weights=True, store=True)  # a store
REHEARSAL: Final = Need(start=True)  # makes up what else is missing
PLANNING: Final = Need()  # computes nothing with the weights that are named
LOOKING: Final = Need(model=False, data=True)  # at views


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request that can be run, and what follows from it."""

    recipe: Recipe
    data: str  # as it was asked for
    dataset: Dataset | None
    folder: RunFolder
    hosting: Hosting
    max_steps: int = 0
    resume: str = "auto"
    trace_samples: bool = False
    parameters: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of each part of the model: trained, all
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)  # `pipeline/fingerprints.py`

    @property
    def index(self) -> Index:
        """The training split."""
        assert self.dataset, "what runs on data was resolved with it"
        return self.dataset.splits["train"]

    @property
    def images(self) -> int:
        """Training images, or as many as the recipe was written for where there is no data."""
        return len(self.index) if self.dataset else self.recipe.data.images

    @cached_property
    def order(self) -> Order:
        """Which views a virtual rank sees at a step; without data, on one shard of as many images."""
        return order_of(self.recipe, self.index.shard_sizes if self.dataset else (self.images,))

    @property
    def schedule(self) -> Schedule:
        """The steps and their learning rates."""
        return Schedule(self.recipe, self.order.steps_per_epoch)

    @property
    def parameter_count(self) -> int:
        """Parameters of the model."""
        return sum(total for _, total in self.parameters.values())

    @property
    def trained_parameters(self) -> int:
        """Those of them that are trained."""
        return sum(trained for trained, _ in self.parameters.values())

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is: fields of its recipe, and fingerprints."""
        return {**identity(self.recipe), **self.fingerprints}

    @property
    def store_fingerprint(self) -> dict[str, Any]:
        """What the outputs of the run's teacher depend on."""
        return store_fingerprint(self.recipe, self.fingerprints)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, at most."""
        return self.parameter_count * BYTES_A_PARAMETER

    @property
    def checkpoint_space(self) -> int:
        """Bytes that the run's checkpoints will take beside those that lie there: all that are kept, and one more."""
        kept = self.recipe.checkpoint.keep
        return self.checkpoint_bytes * (kept + 1 - min(kept, len(checkpoint.checkpoints(self.folder.checkpoints))))

    @property
    def virtual_ranks(self) -> range:
        """The virtual ranks that this process hosts."""
        return self.hosting.virtual_ranks(self.recipe.virtual_ranks)


def resolve(request: Request, need: Need, hosting: Hosting | None = None) -> Job:
    """Return the job of a request, hosted as the launcher says if nothing else is said; leaves nothing behind.

    Raises BadRequest with all that is wrong.
    """
    recipe = request.recipe
    found: list[Problem] = [*request.unknown, *recipe_problems(recipe)]
    if hosting is None:
        try:
            hosting = hosting_of_launch(recipe)
        except BadRequest as error:
            found += error.problems
            hosting = Hosting()
    found += hosting_problems(recipe, hosting.processes, hosting.engine)
    if request.max_steps < 0:
        found.append(Problem("max_steps", f"--max-steps is {request.max_steps}; it must not be negative."))
    job = Job(
        recipe=recipe,
        data=request.data,
        dataset=None,
        folder=RunFolder(request.folder),
        hosting=hosting,
        max_steps=request.max_steps,
        resume=request.resume,
        trace_samples=request.trace_samples,
    )
    try:
        job = replace(job, dataset=_dataset(request, need))
    except BadRequest as error:
        found += error.problems
    if job.dataset:
        found += split_problems(recipe, job.dataset)
    if need.model:
        found += data_problems(recipe, job.dataset) if job.dataset else []
        try:
            job = replace(job, parameters=_parameters(job, need, found))
        except BadRequest as error:
            found += error.problems
        found += _teacher_problems(recipe, need, found)
    if need.output:
        found += list(_output_problems(job))
    if not found:
        job = replace(job, fingerprints=_fingerprints(job, need))
        if need.store and recipe.distill.store and hosting.main:
            found += _store_problems(job)
    if found:
        raise BadRequest(found)
    return job


def _dataset(request: Request, need: Need) -> Dataset | None:
    """Return the data set of a request, None where none is named or needed."""
    if "://" in request.data:
        raise BadRequest.of(
            "data", f"--data {request.data}: URLs are not read yet; copy the shards to a local folder and name that."
        )
    if request.data:
        try:
            return read_dataset(Path(request.data))
        except ShardError as error:
            raise BadRequest.of("data", f"--data {error}") from error
    if need.data:
        raise BadRequest.of("data", "--data is missing: name a folder that `vitrail shards build SOURCE DIR` made.")
    return None


def _goes_on(job: Job) -> bool:
    """Return whether there is a checkpoint to go on from, which holds all: starting weights are not read then."""
    return job.resume not in ("auto", "never") or bool(checkpoint.checkpoints(job.folder.checkpoints))


def _parameters(job: Job, need: Need, found: list[Problem]) -> dict[str, tuple[int, int]]:
    """Return the parameters of each part of the model, trained and in all; of none, where its fields are wrong.

    Raises BadRequest where it cannot be built, or does not go with what else is asked for.
    """
    recipe = job.recipe
    if unknown := list(unknown_model("model.name", recipe.model.name)):
        raise BadRequest(unknown)
    if _concerns(found, "model.", "data.classes", "finetune.", "seed"):
        return {}
    net = on_meta(recipe, start=need.start and not _goes_on(job))
    rate_scales(net, recipe.finetune)  # they fit the model, or it is said here
    if recipe.micro_batch and BatchNorms(net):
        raise BadRequest.of(
            "micro_batch",
            f"--micro-batch {recipe.micro_batch}: {recipe.model.name} has batch norm, which is over a virtual "
            f"rank's images; for smaller ones take more --virtual-ranks.",
        )
    return parameters_by_part(net)


def _teacher_problems(recipe: Recipe, need: Need, found: list[Problem]) -> list[Problem]:
    if not recipe.distill.teacher or _concerns(found, "distill.", "data.classes"):
        return []
    try:
        check_teacher(recipe, fetched=need.weights)
    except BadRequest as error:
        return error.problems
    return []


def _store_problems(job: Job) -> list[Problem]:
    try:
        return differences(Path(job.recipe.distill.store), job.store_fingerprint)
    except StoreError as error:
        return [Problem("distill.store", f"--distill.store {error}")]


def _fingerprints(job: Job, need: Need) -> dict[str, str | None]:
    """Return what tells the job's data, views and weights from others.

    Files of weights are hashed in one process: the others hear of it (`share_fingerprints`).
    """
    model, distill = job.recipe.model, job.recipe.distill
    teacher: str | None = "published" if distill.teacher else None
    start: str | None = "published" if model.pretrained else None
    if need.weights and job.hosting.main:
        if distill.teacher and (file := weights_file(distill)):
            teacher = unchanged_sha256(file)
        if model.weights:  # None for a file that is gone: a run that goes on does not need it
            start = unchanged_sha256(Path(model.weights)) if Path(model.weights).is_file() else None
    return {
        DATA: job.index.fingerprint if job.dataset else None,
        VIEWS: views_version(),
        TEACHER: teacher,
        START: start,
    }


def _output_problems(job: Job) -> Iterator[Problem]:
    """Yield what is wrong with the output folder, and with resuming there."""
    folder = job.folder
    try:
        with tempfile.TemporaryFile(dir=folder.existing) as probe:  # nothing is left behind where it is refused
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        yield Problem("output", f"--output {folder}: cannot be written to ({error.strerror}).")
        return
    if (free := shutil.disk_usage(folder.existing).free) < (needed := job.checkpoint_space):
        yield Problem(
            "output",
            f"--output {folder}: {free / 1e6:,.0f} MB are free, the run's checkpoints need {needed / 1e6:,.0f} MB more "
            f"({job.recipe.checkpoint.keep} kept and one being written).",
        )
    saved = checkpoint.checkpoints(folder.checkpoints)
    if job.resume == "never" and saved:
        step = checkpoint.step_of(saved[0])
        yield Problem("resume", f"--resume never: {folder} holds a run already (step {step}); name another folder.")
    if job.resume not in ("auto", "never") and not (Path(job.resume) / checkpoint.STATE).exists():
        yield Problem("resume", f"--resume {job.resume}: no checkpoint there; name a folder checkpoints/step-NNNNNNNN.")


def _concerns(found: list[Problem], *names: str) -> bool:
    """Return whether a problem concerns one of the fields, or one of a group that ends with a dot."""
    return any(problem.field.startswith(name) for problem in found for name in names)
