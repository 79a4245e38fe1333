"""The training loop, and the run that it works on."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
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
from pipeline.model.batch_norm import BatchNorms
from pipeline.objective import agreement, objective
from pipeline.teacher.outputs import TeacherOutputs, open_outputs
from pipeline.update.schedule import Schedule
from pipeline.update.weights import Weights


class Events(Protocol):
    """What happens beside the arithmetic of a step."""

    def after_batch(self, batch: Batch, images: Tensor) -> None:
        """Take note of a batch that is about to be used; `images` as the model sees them."""
        ...

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        """Log, evaluate, save; return True to stop here.

        `losses` [K]: summed over a virtual rank's images. `agreed`: images of which student and teacher say the same.
        """
        ...

    def skip_step(self, step: int) -> bool:
        """Do what is due after a step that is not trained; return True to stop here."""
        ...

    def lap(self, part: str) -> None:
        """Take note that a part of a step is over (`pipeline/session/telemetry.py`)."""
        ...


class MicroBatch(NamedTuple):
    """What one forward pass takes: images [b, 3, S, S], keys [b], targets [b, classes], and a teacher's outputs."""

    virtual_rank: int
    images: Tensor
    keys: Tensor
    targets: Tensor
    outputs: Tensor | None
    last: bool  # of this process in this step: gradients are exchanged


def train(run: "Run", events: Events) -> bool:
    """Take the steps that are left, and return whether a request stopped them early.

    The gradient of a step is the mean over all images of all virtual ranks.
    """
    recipe, engine = run.job.recipe, run.weights.engine
    engine.student.train()
    for step in range(run.first_step, run.last_step):
        if step in run.skipped_steps:
            if events.skip_step(step):
                return True
            continue
        losses = torch.zeros(recipe.virtual_ranks, device=run.device)
        agreed = torch.zeros((), device=run.device)
        for micro in micro_batches(run, step, events):
            with engine.exchange(micro.last):
                logits = engine.student(micro.images, micro.keys)
                loss = objective(logits, micro.targets, micro.outputs, recipe, run.class_weights)
                events.lap("forward")
                engine.backward(loss.sum() * run.loss_scale)
                events.lap("backward")
            losses[micro.virtual_rank] += loss.detach().sum()
            if micro.outputs is not None:
                agreed += agreement(logits, micro.outputs)
        norm = run.weights.update(run.schedule.lr(step), recipe.optim.clip, step)
        events.lap("update")
        if events.after_step(step, losses, agreed, norm):
            return True
    return False


@dataclass
class Run:
    """A training that is built and restored: what `train` works on."""

    job: Job
    accelerator: Accelerator
    schedule: Schedule
    weights: Weights  # model, engine, optimizer, average
    feed: Feed  # batches
    teacher: TeacherOutputs | None
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
    )
    teacher = None
    if recipe.distill.teacher:
        teacher = open_outputs(recipe, job.order, job.store_fingerprint, accelerator, compiled=job.hosting.compiled)
    sampler = StepSampler(range(first_step, last_step), job.virtual_ranks, skipped_steps)
    loader = load(
        TrainingBatches(recipe, job.index),
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
        feed=Feed(iter(loader) if len(sampler) else iter(())),
        teacher=teacher,
        class_weights=torch.tensor(job.class_weights, device=accelerator.device) if job.class_weights else None,
        norms=BatchNorms(weights.net),
        first_step=first_step,
        last_step=last_step,
        skipped_steps=skipped_steps,
    )


def micro_batches(run: Run, step: int, events: Events) -> Iterator[MicroBatch]:
    """Yield what this process does in a step: its virtual ranks, each in one piece or several."""
    recipe, hosted = run.job.recipe, run.job.virtual_ranks
    size = recipe.micro_batch_size
    with run.norms.over_virtual_ranks(run.accelerator, len(hosted), recipe.virtual_ranks):
        for turn, rank in enumerate(hosted):
            run.norms.take_turn(turn)
            batch = awaited(run.feed, step, rank)
            events.lap("wait")
            views = on_device(batch, run.device)
            images = model_input(views, recipe.model)
            events.after_batch(batch, images)
            targets = mix_labels(
                views.labels, views.mixing, classes=recipe.data.classes, smoothing=recipe.mix.smoothing
            )
            outputs = run.teacher.of(batch, images) if run.teacher else None
            for first in range(0, len(images), size):
                part = slice(first, first + size)
                last = rank == hosted[-1] and first + size >= len(images)
                part_outputs = None if outputs is None else outputs[part]
                events.lap("input")
                yield MicroBatch(rank, images[part], views.depth_keys[part], targets[part], part_outputs, last)


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
