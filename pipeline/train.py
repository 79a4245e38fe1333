"""The training loop, and the run that it works on."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.checkpoint import Snapshot
from pipeline.data.batch import Batch, TrainingBatches
from pipeline.data.device import model_input, on_device
from pipeline.data.loader import Feed, StepSampler, load
from pipeline.data.mix import mix_labels
from pipeline.devices import pins
from pipeline.errors import LoaderError
from pipeline.job import Job
from pipeline.micro_batch import MicroBatch
from pipeline.model.batch_norm import BatchNorms
from pipeline.model.prefix import WEIGHTS, PrefixOutputs, prefix_sha256
from pipeline.model.student import layout_of
from pipeline.objective import agreement, objective
from pipeline.teacher.outputs import TeacherOutputs, open_outputs
from pipeline.update.schedule import Schedule
from pipeline.update.weights import Weights


class Events(Protocol):
    """What happens beside the arithmetic of a step."""

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        """Take note of a batch that is about to be used; `images` as the model sees them, None of one of rows."""
        ...

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        """Log, evaluate, save; return True to stop here.

        `losses` [K]: summed over a virtual rank's images. `agreed`: images of which student and teacher say the same.
        """
        ...

    def skip_step(self, step: int) -> bool:
        """Do what is due after a step that is not trained; return True to stop here."""
        ...

    def after_halving(self, step: int, said: str) -> None:
        """Take note that a step is done again, as its passes did not fit (`pipeline/micro_batch.py`)."""
        ...

    def lap(self, part: str) -> None:
        """Take note that a part of a step is over (`pipeline/session/telemetry.py`)."""
        ...


def train(run: "Run", events: Events) -> bool:
    """Take the steps that are left, and return whether a request stopped them early.

    The gradient of a step is the mean over all images of all virtual ranks.
    """
    run.weights.engine.student.train()
    for step in range(run.first_step, run.last_step):
        if step in run.skipped_steps:
            if events.skip_step(step):
                return True
            continue
        passes = partial(forward_backward, run, StepBatches(run, step, events), events)
        losses, agreed = run.micro_batch.fitted(step, passes, run.weights.engine, events.after_halving)
        norm = run.weights.update(run.schedule.lr(step), run.job.recipe.optim.clip, step)
        events.lap("update")
        if events.after_step(step, losses, agreed, norm):
            return True
    return False


def forward_backward(run: "Run", batches: "StepBatches", events: Events) -> tuple[Tensor, Tensor]:
    """Add up the gradients of a step's images, and return the losses [K] of the virtual ranks, as `after_step` says."""
    recipe, engine = run.job.recipe, run.weights.engine
    losses, agreed = [], torch.zeros((), device=run.device)
    exchanges = not run.micro_batch.asks(engine)
    for inputs, last in micro_batches(run, batches):
        with engine.exchange(last and exchanges):
            logits = engine.student(inputs.images, inputs.keys)
            loss = objective(logits, inputs.targets, inputs.outputs, recipe, run.class_weights)
            events.lap("forward")
            engine.backward(loss.sum() * run.loss_scale)
            events.lap("backward")
        losses.append(loss.detach())
        if inputs.outputs is not None:
            agreed += agreement(logits, inputs.outputs)
    by_rank = torch.zeros(recipe.virtual_ranks, device=run.device)
    hosted = run.job.virtual_ranks
    by_rank[hosted.start : hosted.stop] = torch.cat(losses).view(len(hosted), recipe.rank_batch).sum(1)
    return by_rank, agreed


@dataclass
class Run:
    """A training that is built and restored: what `train` works on."""

    job: Job
    accelerator: Accelerator
    schedule: Schedule
    weights: Weights  # model, engine, optimizer, average
    micro_batch: MicroBatch  # the images of a pass
    feed: Feed  # batches
    teacher: TeacherOutputs | None
    prefix: PrefixOutputs | None
    class_weights: Tensor | None  # [C], in the loss
    norms: BatchNorms
    first_step: int
    last_step: int  # where the phase of this session ends
    skipped_steps: Collection[int]  # not trained, for a spike (`pipeline/session/spike.py`)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def loss_scale(self) -> float:
        """What one image's loss counts: processes average their gradients, the run takes the mean over the batch."""
        return self.job.hosting.processes / self.job.recipe.batch


def build(
    job: Job,
    accelerator: Accelerator,
    micro_batch: MicroBatch,
    *,
    snapshot: Snapshot | None = None,
    skipped_steps: Collection[int] = (),
) -> Run:
    """Build the run of a job, and restore it from a snapshot where there is one.

    Of gradual fine-tuning it is the phase that is due, the head alone or all, with an optimizer of its own.
    """
    recipe, schedule = job.recipe, job.schedule
    first_step = snapshot.step if snapshot else 0
    last_step = schedule.phase_end(first_step, job.max_steps)
    since = range(schedule.phase_start(first_step), first_step)
    saved = snapshot.tensors if snapshot else None
    weights = Weights.build(
        recipe,
        job.hosting,
        accelerator,
        saved if since or not saved else {**saved, "optimizer": {}},  # that of the head's phase has done its part
        head_alone=first_step < schedule.head_steps,
        cut=job.cut,
    )
    prefix = None
    if job.cut and job.rows:
        job.rows.begin(len(job.index), job.prefix_fingerprint | {WEIGHTS: prefix_sha256(weights.net, job.cut)})
        prefix = PrefixOutputs(weights.net, job.cut, job.rows, layout_of(recipe.compute), accelerator)
    teacher = None
    if recipe.distill.teacher:
        teacher = open_outputs(recipe, job.order, job.store_fingerprint, accelerator, compiled=job.hosting.compiled)
    sampler = StepSampler(range(first_step, last_step), job.virtual_ranks, skipped_steps)
    loader = load(
        TrainingBatches(recipe, job.index, job.rows),
        sampler,
        workers=job.hosting.workers,
        pin_memory=pins(accelerator.device),
        remote=job.index.cache is not None,
    )
    return Run(
        job=job,
        accelerator=accelerator,
        schedule=schedule,
        weights=weights,
        micro_batch=micro_batch,
        feed=Feed(iter(loader) if len(sampler) else iter(())),
        teacher=teacher,
        prefix=prefix,
        class_weights=torch.tensor(job.class_weights, device=accelerator.device) if job.class_weights else None,
        norms=BatchNorms(weights.net),
        first_step=first_step,
        last_step=last_step,
        skipped_steps=skipped_steps,
    )


class Inputs(NamedTuple):
    """What the model sees and learns of b views."""

    images: Tensor  # [b, 3, S, S]; or rows of a frozen prefix
    keys: Tensor  # int64 [b]
    targets: Tensor  # [b, classes]
    outputs: Tensor | None  # a teacher's

    def of(self, views: slice) -> "Inputs":
        """Return those of some of the views."""
        outputs = None if self.outputs is None else self.outputs[views]
        return Inputs(self.images[views], self.keys[views], self.targets[views], outputs)


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Return the inputs of several virtual ranks as one; of one, without a copy."""
    if len(parts) == 1:
        return parts[0]
    images, keys, targets = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    outputs = [part.outputs for part in parts if part.outputs is not None]
    return Inputs(images, keys, targets, torch.cat(outputs) if outputs else None)


class StepBatches:
    """The batches of a process in a step: taken from the loader and noted once, however often the step is done."""

    def __init__(self, run: Run, step: int, events: Events) -> None:
        self._run, self._step, self._events = run, step, events
        self._batches: list[Batch] = []
        self._outputs: list[Tensor | None] = []  # a teacher's
        self._seen: tuple[int, Inputs] | None = None  # a virtual rank, of which a part may have passed

    def inputs(self, first: int, end: int) -> Inputs:
        """Return those of the images from `first` up to `end`, counted through all virtual ranks of this process."""
        of_rank = self._run.job.recipe.rank_batch
        parts = []
        for turn in range(first // of_rank, -(-end // of_rank)):
            before = turn * of_rank
            parts.append(self._of(turn).of(slice(max(first - before, 0), min(end - before, of_rank))))
        return joined(parts)

    def _of(self, turn: int) -> Inputs:
        """Return the inputs of this process's virtual rank number `turn`: views are mixed within it."""
        if self._seen and self._seen[0] == turn:
            return self._seen[1]
        run, recipe = self._run, self._run.job.recipe
        if turn == len(self._batches):
            self._batches.append(awaited(run.feed, self._step, run.job.virtual_ranks[turn]))
            self._events.lap("wait")
        batch = self._batches[turn]
        views = on_device(batch, run.device)
        images = views.images if batch.has_rows else model_input(views, recipe.model)
        targets = mix_labels(views.labels, views.mixing, classes=recipe.data.classes, smoothing=recipe.mix.smoothing)
        if turn == len(self._outputs):
            outputs = run.teacher.of(batch, images, run.micro_batch.size) if run.teacher else None
            self._events.after_batch(batch, None if batch.has_rows else images)
            self._outputs.append(outputs)
        if run.prefix and not batch.has_rows:
            images = run.prefix.of(batch, images, run.micro_batch.size)
        self._seen = turn, Inputs(images, views.depth_keys, targets, self._outputs[turn])
        self._events.lap("input")
        return self._seen[1]


def micro_batches(run: Run, batches: StepBatches) -> Iterator[tuple[Inputs, bool]]:
    """Yield what this process does in a step, its virtual ranks end to end, a micro-batch at a time; True for the last.

    Those of a network with batch norm are its virtual ranks.
    """
    hosted, size = run.job.virtual_ranks, run.micro_batch.size
    images = run.micro_batch.images
    with run.norms.over_virtual_ranks(run.accelerator, len(hosted), run.job.recipe.virtual_ranks):
        for number, first in enumerate(range(0, images, size)):
            run.norms.take_turn(number)
            end = min(first + size, images)
            yield batches.inputs(first, end), end == images


def awaited(feed: Feed, step: int, virtual_rank: int) -> Batch:
    """Return the next batch.  Raises LoaderError where it is another one: the loader keeps to the sampler's order."""
    batch = feed.next_batch()
    if batch and (batch.step, batch.virtual_rank) == (step, virtual_rank):
        return batch
    instead = f"that of step {batch.step}, virtual rank {batch.virtual_rank}" if batch else "none"
    raise LoaderError(
        f"step {step}: the loader lost the batch of virtual rank {virtual_rank}, or repeated another: it handed over "
        f"{instead}. Start the same command again to go on."
    )
