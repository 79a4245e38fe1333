"""The job: all that is known of a request before the first tensor exists.

A request is resolved once. Resolving finds everything that is wrong and says it at once; whatever runs, runs a job and
asks nobody again.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from timm.layers import PatchEmbed

from pipeline import checkpoint
from pipeline.config import Model, Recipe, identity
from pipeline.data.loader import SHARED_MEMORY, free_shared_memory, shared_memory
from pipeline.data.order import Order, order_of
from pipeline.data.rows import ROWS, Rows
from pipeline.data.version import views_version
from pipeline.devices import compiles, current, pins
from pipeline.errors import StoreError
from pipeline.fingerprints import CLASSES, DATA, START, TEACHER, VIEWS, json_sha256, unchanged_sha256
from pipeline.folder import RunFolder, existing
from pipeline.hosting import Hosting, hosting_of_launch
from pipeline.model import torchvision_nets
from pipeline.model.batch_norm import BatchNorms
from pipeline.model.build import check_start, on_meta, unknown_model
from pipeline.model.finetune import parameters_by_part, rate_scales
from pipeline.model.prefix import WEIGHTS, Cut, cut_of, prefix_fingerprint
from pipeline.model.start import Trained, normalised, said_of_input, trained_with
from pipeline.model.weights_file import file_of
from pipeline.request import Request
from pipeline.rules import data_problems, hosting_problems, label_problems, recipe_problems, split_problems
from pipeline.teacher.store import OUTPUTS, store_fingerprint
from pipeline.teacher.teacher import check_teacher, weights_file
from pipeline.trackers import missing_trackers
from pipeline.update.optimizer import numbers_kept, optimizer_problems
from pipeline.update.schedule import Schedule
from shards.dataset import Dataset
from shards.errors import BadRequest, DamagedFile, Problem, ShardError, SourceError, harmless
from shards.files import read_json
from shards.index import Index
from shards.open import Opener, Reading

SHOWN: Final = 3  # of many names, in a sentence
FLOAT: Final = 4  # bytes
REPAID: Final = 1000  # steps after which compiling has saved more than the minutes that it took


class Need(NamedTuple):
    """What must be there for what is asked for."""

    train: bool = True  # a training split, in as many virtual ranks as there are processes, and what fits it
    model: bool = True  # that it can be built, and fits the data
    data: bool = False  # a data set
    tars: bool = True  # of the data set that is named, beside its indexes
    output: bool = False  # a folder that takes a run's checkpoints
    start: bool = False  # a file of weights that the model starts from, where one is named
    weights: bool = False  # a teacher's, published or in a file
    store: bool = False  # of teacher outputs, where one is named
    loader: bool = False  # shared memory for its workers


TRAINING: Final = Need(data=True, output=True, start=True, weights=True, store=True, loader=True)
FILLING: Final = Need(data=True, weights=True, store=True, loader=True)  # a store
REHEARSAL: Final = Need(start=True)  # makes up what else is missing
MEASURING: Final = Need()  # speed, which does not depend on the weights that are named
PLANNING: Final = Need(tars=False)  # computes nothing with the weights and images that are named
LOOKING: Final = Need(model=False, data=True)  # at views
ORDERING: Final = Need(model=False, data=True, tars=False)  # says which they are
EVALUATING: Final = Need(train=False, data=True, start=True)  # a trained model on any split
PREDICTING: Final = Need(train=False, start=True)  # with one, on images that belong to no data set


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
    begun: bool = False  # whether the run began from the checkpoint that `resume` names, and has later ones now
    trace_samples: bool = False
    parameters: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of each part of the model: trained, all
    batch_norm: bool = False  # in the model, which then passes a virtual rank at a time
    blocks: bool = False  # in the model, which are all alike
    start: str = ""  # what is found in the weights that the model starts from, in words
    taught_by: str = ""  # the same of the teacher's
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)  # `pipeline/fingerprints.py`
    cut: Cut | None = None  # where what the frozen part of the model gives is cached

    @property
    def named(self) -> Path | None:
        """The checkpoint that `resume` names."""
        return named(self.resume)

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
        if not self.dataset:
            return order_of(self.recipe, (self.images,))
        return order_of(self.recipe, self.index.shard_sizes, self.index.known_labels)

    @cached_property
    def class_weights(self) -> tuple[float, ...]:
        """The weight of each class in the loss; none where all weigh the same.

        `balanced`: images / (classes x images of the class), of those that the run trains on; 0 for a class of none.
        """
        weights, classes = self.recipe.mix.class_weights, self.recipe.data.classes
        if weights != "balanced":
            return weights
        assert self.index.known_labels is not None, "the request was refused"
        labels = self.index.known_labels if self.order.chosen is None else self.index.known_labels[self.order.chosen]
        counts = np.bincount(labels, minlength=classes)
        return tuple(np.where(counts, len(labels) / (classes * np.maximum(counts, 1)), 0.0).tolist())

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
    def rows(self) -> Rows | None:
        """What the frozen part of the model gives of each image, if it is cached: in files by where that part ends."""
        return Rows(Path(self.recipe.finetune.cache) / self.cut.at, self.cut.shape) if self.cut else None

    @property
    def prefix_fingerprint(self) -> dict[str, Any]:
        """What these rows depend on, but for the weights that they are computed with."""
        return prefix_fingerprint(self.recipe, self.fingerprints, self.hosting.precision)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, at most."""
        tensors = 1 + len(self.recipe.ema.decays) + numbers_kept(self.recipe.optim)
        return round(self.parameter_count * FLOAT * tensors)

    @property
    def checkpoint_space(self) -> int:
        """Bytes that the run's checkpoints will take beside those that lie there: all that are kept, and one more.

        Those that a run leaves by going back stay, and make no room.
        """
        kept = self.recipe.checkpoint.keep + (self.recipe.checkpoint.best != "none")
        there = 0 if self.named and not self.begun else len(checkpoint.checkpoints(self.folder.checkpoints))
        return self.checkpoint_bytes * (kept + 1 - min(kept, there))

    def shared_memory(self, workers: int) -> int:
        """Bytes of shared memory that this node's processes take at most, with so many loader workers each."""
        held_out = self.images
        if self.dataset:
            split = self.dataset.evaluation_split()
            held_out = len(self.dataset.splits[split]) if split else 0
        row = self.cut.shape if self.cut else None
        # a step holds the batches of all its virtual ranks; pinning moves each out of shared memory
        in_use = 1 if pins(current()) else max(self.hosting.shares(self.recipe.virtual_ranks))
        return self.hosting.local_processes * shared_memory(self.recipe, workers, held_out, in_use, row)

    @property
    def virtual_ranks(self) -> range:
        """The virtual ranks that this process hosts."""
        return self.hosting.virtual_ranks(self.recipe.virtual_ranks)

    def shards_at(self, step: int) -> set[int]:
        """Return the shards that the virtual ranks of this node read at a step and soon after it."""
        ranks = self.hosting.virtual_ranks_of_node(self.recipe.virtual_ranks)
        return {shard for rank in ranks for shard in self.order.shards_ahead(step, rank, self.recipe.epochs)}


def resolve(request: Request, need: Need, hosting: Hosting | None = None) -> Job:
    """Return the job of a request, hosted as the launcher says if nothing else is said; leaves nothing behind.

    Raises BadRequest with all that is wrong.
    """
    found: list[Problem] = [*request.unknown]
    trained = trained_with(request.recipe.model)
    folder, saved = RunFolder(request.folder), named(request.resume)
    begun = bool(saved and folder.began_from(saved) and checkpoint.checkpoints(folder.checkpoints))
    identity_saved = _saved_identity(folder, None if begun else saved) if need.train else {}
    model = normalised(request.recipe.model, trained, identity_saved)
    recipe = replace(request.recipe, model=model)
    found += recipe_problems(recipe)
    if hosting is None:
        try:
            hosting = hosting_of_launch(recipe)
        except BadRequest as error:
            found += error.problems
            hosting = Hosting()
    if need.train:
        found += hosting_problems(recipe, hosting.processes, hosting.engine)
    if request.max_steps < 0:
        found.append(Problem("max_steps", f"--max-steps is {request.max_steps}; it must not be negative."))
    job = Job(
        recipe=recipe,
        data=request.data,
        dataset=None,
        folder=folder,
        hosting=hosting,
        max_steps=request.max_steps,
        resume=request.resume,
        begun=begun,
        trace_samples=request.trace_samples,
    )
    try:
        job = replace(job, dataset=_dataset(request, need))
    except BadRequest as error:
        found += error.problems
    if job.dataset:
        found += label_problems(job.dataset)
        found += split_problems(recipe, job.dataset) if need.train else []
    if need.model:
        found += optimizer_problems(recipe.optim)
        found += data_problems(recipe, job.dataset) if job.dataset and need.train else []
        try:
            job = _with_model(job, need, found)
            if job.parameters and need.start and not (need.train and _goes_on(job)):
                job = replace(job, start=_start(job, request.recipe.model, trained))
        except BadRequest as error:
            found += error.problems
        try:
            job = replace(job, taught_by=_taught_by(job, need, found) if need.train else "")
        except BadRequest as error:
            found += error.problems
    if need.start and hosting.main:
        found += missing_trackers(recipe.log.trackers)
    if need.output:
        found += list(_output_problems(job, found))
    if need.loader and not (job.dataset and "train" not in job.dataset.splits):
        found += _loader_problems(job, found)
    if need.loader and job.dataset and not found:
        found += _cache_problems(job)
    if not found:
        job = replace(job, hosting=replace(hosting, compiled=need.train and need.model and _compiled(job, current())))
        job = replace(job, fingerprints=_fingerprints(job, need))
        if need.store and recipe.distill.store and hosting.main:
            found += _store_problems(job)
        if need.store and hosting.main:
            found += _rows_problems(job)
    if found:
        raise BadRequest(found)
    return job


def _dataset(request: Request, need: Need) -> Dataset | None:
    """Return the data set of a request, None where none is named or needed."""
    if request.data:
        dataset = open_data(request.data, request.recipe)
        if need.tars and (missing := dataset.missing_shards()):
            more = f" And {len(missing) - SHOWN} more." if len(missing) > SHOWN else ""
            raise BadRequest.of(
                "data",
                f"--data {request.data}: {' '.join(missing[:SHOWN])}{more} Copy these shards again, or if the tars are "
                f"right: vitrail shards index {request.data}",
            )
        return dataset
    if need.data:
        raise BadRequest.of(
            "data",
            "--data is missing: name shards that `vitrail shards build SOURCE DIR` made, or images, or tars of others.",
        )
    return None


def open_data(spec: str, recipe: Recipe) -> Dataset:
    """Return the data that `--data` names, read as a recipe says.  Raises BadRequest for what cannot be used."""
    reading = reading_of(recipe)
    if problems := list(reading.problems()):
        raise BadRequest(problems)
    try:
        dataset = Opener(reading, lambda text: print(harmless(text), file=sys.stderr)).open(spec)
    except SourceError as error:
        raise BadRequest.of(
            "data", f"--data {error} A flag named here is one of building: build shards with it, and name those."
        ) from error
    except ShardError as error:
        raise BadRequest.of("data", f"--data {error}") from error
    if not dataset.classes:  # of tars that are read as they arrive
        dataset = replace(dataset, classes=tuple(map(str, range(recipe.data.classes))))
    return dataset


def reading_of(recipe: Recipe) -> Reading:
    """Return how a recipe's data is read."""
    return Reading(**{item.name: getattr(recipe.data, item.name) for item in fields(Reading)})


def named(resume: str) -> Path | None:
    """Return the checkpoint that `--resume` names, None where it names none."""
    return None if resume in ("auto", "never") else Path(resume)


def _goes_on(job: Job) -> bool:
    """Return whether there is a checkpoint to go on from, which holds all: starting weights are not read then."""
    return bool(job.named or checkpoint.checkpoints(job.folder.checkpoints))


def _saved_identity(folder: RunFolder, saved: Path | None) -> Mapping[str, Any]:
    """Return what the checkpoint to go on from says that its run is; nothing where there is none that can be read."""
    for path in [saved] if saved else checkpoint.checkpoints(folder.checkpoints):
        try:
            return read_json(path / checkpoint.STATE, checkpoint.ThisState)["identity"]
        except (OSError, DamagedFile):  # the session says which it passes over
            continue
    return {}


def _start(job: Job, asked: Model, trained: Trained) -> str:
    """Return what the model starts from, in words; nothing where that is the seed.  Raises BadRequest for a misfit."""
    model = job.recipe.model
    if model.weights:
        found = check_start(job.recipe)
    elif model.pretrained:
        library = "torchvision" if model.name.startswith(torchvision_nets.PREFIX) else "timm"
        found = f"published by {library} for {model.name}"
    else:
        return ""
    return "; ".join([found, *said_of_input(asked, trained)])


def _with_model(job: Job, need: Need, found: list[Problem]) -> Job:
    """Return the job with what is known of its model once that is built; as it is, where the model's fields are wrong.

    Raises BadRequest where it cannot be built, or does not go with what else is asked for.
    """
    recipe = job.recipe
    if unknown := list(unknown_model("model.name", recipe.model.name)):
        raise BadRequest(unknown)
    if _concerns(found, "model.", "data.classes", "finetune.", "seed"):
        return job
    net = on_meta(recipe)
    if isinstance(stem := getattr(net, "patch_embed", None), PatchEmbed):  # which leaves the rest of an image unseen
        patch = stem.patch_size[0]
        if recipe.model.img_size % patch:
            raise BadRequest.of(
                "model.img_size",
                f"--model.img-size {recipe.model.img_size} is not a multiple of the {patch} px of the patches of "
                f"{recipe.model.name}; take {max(1, round(recipe.model.img_size / patch)) * patch}.",
            )
    rate_scales(net, recipe.finetune)  # they fit the model, or it is said here
    batch_norm = bool(BatchNorms(net))
    if recipe.micro_batch != "auto" and batch_norm:
        raise BadRequest.of(
            "micro_batch",
            f"--micro-batch {recipe.micro_batch}: {recipe.model.name} has batch norm, which is over a virtual "
            f"rank's images; for smaller ones take more --virtual-ranks.",
        )
    return replace(
        job,
        parameters=parameters_by_part(net),
        batch_norm=batch_norm,
        blocks=hasattr(net, "blocks"),
        cut=cut_of(net, recipe.model.img_size) if recipe.finetune.cache and need.train else None,
    )


def _compiled(job: Job, device: torch.device) -> bool:
    """Return whether a job's model is compiled.

    `auto` does it where it is faster and takes minutes alone: on a device that has a compiler, in a run long enough to
    repay them, and of blocks that are all alike. Batch norm's momentum changes within a step, which would be compiled
    anew. Where this session ends says nothing: compiled or not, numbers round otherwise, and a run that is resumed is
    to be the unbroken one.
    """
    if job.recipe.compute.compile != "auto":
        return job.recipe.compute.compile == "on"
    if not compiles(device) or job.hosting.engine == "zero3":
        return False
    return job.schedule.total_steps >= REPAID and job.blocks and not job.batch_norm


def _taught_by(job: Job, need: Need, found: list[Problem]) -> str:
    """Return what is found in the file of the teacher's weights, in words.  Raises BadRequest for a misfit."""
    if not job.recipe.distill.teacher or _concerns(found, "distill.", "data.classes"):
        return ""
    return check_teacher(job.recipe, fetched=need.weights)


def _store_problems(job: Job) -> list[Problem]:
    try:
        return OUTPUTS.differences(Path(job.recipe.distill.store), job.store_fingerprint)
    except StoreError as error:
        return [Problem("distill.store", f"--distill.store {error}")]


def _rows_problems(job: Job) -> Iterator[Problem]:
    """Yield what is wrong with the cache of what the model's frozen part gives: it is of others, or has no room."""
    rows = job.rows
    if not rows:
        return
    try:
        yield from ROWS.differences(rows.folder, job.prefix_fingerprint, unknown=[WEIGHTS])
    except StoreError as error:
        yield Problem("finetune.cache", f"--finetune.cache {error}")
        return
    free, needed = shutil.disk_usage(existing(rows.folder)).free, rows.missing_bytes(job.order.num_samples)
    if free < needed:
        yield Problem(
            "finetune.cache",
            f"--finetune.cache {rows.folder}: {free / 1e6:,.0f} MB are free, what the frozen part gives of "
            f"{job.order.num_samples:,} images needs {needed / 1e6:,.0f} MB more.",
        )


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
            start = unchanged_sha256(file) if (file := file_of(model.weights)).is_file() else None
    return {
        DATA: _data_fingerprint(job, need) if job.dataset else None,
        CLASSES: json_sha256(job.dataset.classes) if job.dataset else None,
        VIEWS: views_version(),
        TEACHER: teacher,
        START: start,
    }


def _data_fingerprint(job: Job, need: Need) -> str:
    """Return what tells the training split from others, or all splits where none is trained on."""
    assert job.dataset
    if need.train:
        return job.index.fingerprint
    return json_sha256({name: index.fingerprint for name, index in job.dataset.splits.items()})


def _output_problems(job: Job, found: list[Problem]) -> Iterator[Problem]:
    """Yield what is wrong with the output folder, and with resuming there."""
    folder = job.folder
    try:
        # nothing is left behind where it is refused; where a file has a name while it is open, `strangers` of another
        # process passes over this one
        with tempfile.TemporaryFile(dir=folder.existing, prefix=".probe-") as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        yield Problem("output", f"--output {folder}: cannot be written to ({error.strerror}).")
        return
    if strangers := folder.strangers():
        more = f" and {len(strangers) - SHOWN} more" if len(strangers) > SHOWN else ""
        yield Problem(
            "output",
            f"--output {folder}: holds what is no run's ({', '.join(strangers[:SHOWN])}{more}); name a folder of the "
            f"run's own.",
        )
    free = shutil.disk_usage(folder.existing).free
    if not _concerns(found, "optim.") and free < (needed := job.checkpoint_space):
        yield Problem(
            "output",
            f"--output {folder}: {free / 1e6:,.0f} MB are free, the run's checkpoints need {needed / 1e6:,.0f} MB more "
            f"({job.recipe.checkpoint.keep} kept and one being written).",
        )
    saved = checkpoint.checkpoints(folder.checkpoints)
    if job.resume == "never" and saved:
        step = checkpoint.step_of(saved[0])
        yield Problem("resume", f"--resume never: {folder} holds a run already (step {step}); name another folder.")
    if job.named and not job.begun and not (job.named / checkpoint.STATE).exists():
        yield Problem("resume", f"--resume {job.named}: no checkpoint there; name a folder checkpoints/step-NNNNNNNN.")


def _loader_problems(job: Job, found: list[Problem]) -> list[Problem]:
    """Return what is wrong with the shared memory that loader workers hand their batches over in."""
    if _concerns(found, "data.workers", "batch", "virtual_ranks", "eval.batch", "model.img_size"):
        return []
    workers, processes, free = job.hosting.workers, job.hosting.local_processes, free_shared_memory()
    if free is None or (needed := job.shared_memory(workers)) <= free:
        return []
    fitting = next((fewer for fewer in range(workers, 0, -1) if job.shared_memory(fewer) <= free), 0)
    return [
        Problem(
            "data.workers",
            f"{SHARED_MEMORY}: {free / 1e6:,.1f} MB are free, the batches that {workers} loader workers of "
            f"{processes} process(es) prepare may need {needed / 1e6:,.1f} MB. What fits is --data.workers {fitting}; "
            f"or give more: docker run --shm-size or --ipc=host.",
        )
    ]


def _cache_problems(job: Job) -> Iterator[Problem]:
    """Yield what is wrong with the room for shards behind URLs: those that are read at a time must fit."""
    index, steps = job.index, job.order.steps_per_epoch
    if not index.cache or not steps:
        return
    needed = sum(index.shards[shard].bytes for shard in job.shards_at(steps // 2))  # where the windows are whole
    if needed > index.cache.limit:
        yield Problem(
            "data.cache_limit",
            f"--data.cache-limit {job.recipe.data.cache_limit} is {index.cache.limit / 1e9:,.1f} GB here, the shards "
            f"that this node reads at a time are {needed / 1e9:,.1f} GB. Give more, name another --data.cache, or take "
            f"a smaller --data.window.",
        )


def _concerns(found: list[Problem], *names: str) -> bool:
    """Return whether a problem concerns one of the fields, or one of a group that ends with a dot."""
    return any(problem.field.startswith(name) for problem in found for name in names)
