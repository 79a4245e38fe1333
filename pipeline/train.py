"""The training loop, and the run that it works on."""

import copy
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.average import Average
from pipeline.batch import Bad, Batch, Places, TrainingBatches, as_seen, load
from pipeline.batch_norm import BatchNorms
from pipeline.checkpoint import Snapshot
from pipeline.config import Recipe
from pipeline.engine import ENGINES, Replicated
from pipeline.finetune import by_part
from pipeline.hosting import engine_of_launch, hosted
from pipeline.mix import mix_labels
from pipeline.models import build_student, without_weights
from pipeline.objective import agreement, objective
from pipeline.order import Order
from pipeline.schedule import cosine
from pipeline.teacher import Answers
from shards.index import Index


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

    def pass_over(self, step: int) -> bool:
        """Do what is due after a step that is left out; return True to stop here."""
        ...


class Micro(NamedTuple):
    """What one forward pass takes: images [b, 3, S, S], keys [b], targets [b, classes], a teacher's answers."""

    virtual_rank: int
    images: Tensor
    keys: Tensor
    targets: Tensor
    answers: Tensor | None
    last: bool  # of this process in this step: gradients are exchanged


def train(run: "Run", events: Events) -> bool:
    """Take the steps that are left, and return whether a request stopped them early.

    The gradient of a step is the mean over all images of all virtual ranks.
    """
    engine = run.engine
    engine.student.train()
    for step in range(run.first_step, run.last_step):
        if step in run.left_out:
            if events.pass_over(step):
                return True
            continue
        losses = torch.zeros(run.recipe.virtual_ranks, device=run.device)
        agreed = torch.zeros((), device=run.device)
        for micro in micro_batches(run, step, events):
            with engine.exchange(micro.last):
                logits = engine.student(micro.images, micro.keys)
                loss = objective(logits, micro.targets, micro.answers, run.recipe)
                engine.backward(loss.sum() * run.loss_scale)
            losses[micro.virtual_rank] += loss.detach().sum()
            if micro.answers is not None:
                agreed += agreement(logits, micro.answers)
        norm = engine.update(run.lr(step), run.recipe.optim.clip)
        if run.average:
            run.average.update(engine.local(), step + 1)
        if events.after_step(step, losses, agreed, norm):
            return True
    return False


@dataclass
class Run:
    """A training that is built and restored: what `train` works on."""

    recipe: Recipe
    index: Index
    order: Order
    accelerator: Accelerator
    net: nn.Module  # the timm model, of whose weights a process may hold a part
    by_part: dict[str, tuple[int, int]]  # parameters of each part of the net: trained, and in all
    blank: nn.Module  # another in evaluation mode, without memory for its weights
    engine: Replicated
    average: Average | None  # of the weights
    answers: Answers | None  # of the teacher, where there is one
    norms: BatchNorms
    hosted: range  # virtual ranks of this process
    first_step: int
    last_step: int  # where this session stops
    total_steps: int  # of the recipe: the schedule's length
    left_out: Collection[int]  # steps that are not trained, for a spike (`pipeline/spike.py`)
    batches: Iterator[Batch]
    data_wait: float = 0.0  # seconds spent waiting for the loader
    bad: list[Bad] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def loss_scale(self) -> float:
        """What one image's loss counts: processes average their gradients, the run takes the mean over the batch."""
        return self.accelerator.num_processes / self.recipe.batch

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        optim, steps = self.recipe.optim, self.order.steps_per_epoch
        if step < head_steps(self.recipe, steps):
            return self.recipe.finetune.head_lr
        return cosine(
            step - head_steps(self.recipe, steps),
            peak=self.recipe.peak_lr,
            floor=optim.min_lr,
            warmup=optim.warmup_epochs * steps,
            total=self.total_steps - head_steps(self.recipe, steps),
            start=optim.warmup_lr,
        )

    def next_batch(self) -> Batch:
        """Return the next batch of the loader, and count the time spent waiting for it and its unusable samples."""
        started = time.perf_counter()
        batch = next(self.batches)
        self.data_wait += time.perf_counter() - started
        self.bad += batch.bad
        return batch

    def close(self) -> None:
        """End the loader's workers: a loader does so when its iterator is forgotten, at exit it would be too late."""
        self.batches = iter(())

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of tensors in a checkpoint."""
        return ("model", "optimizer", *(("ema",) if self.average else ()))

    def whole(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield the net's tensors and those of their average, whole, each with its group, `model` or `ema`, and name.

        All processes must ask. Where no engine spreads them, they are the run's own, and change with the next step.
        """
        held = {"model": self.engine.local()} | ({"ema": self.average.tensors} if self.average else {})
        for group, tensors in held.items():
            for name, local in tensors.items():
                yield group, name, self.engine.whole(name, local)

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield all that a checkpoint must hold, as `whole`; the optimizer's state is the group `optimizer`."""
        yield from self.whole()
        for name, moment in self.engine.moments():
            yield "optimizer", name, moment

    def nets(self) -> dict[str, nn.Module]:
        """Return the net with its weights and with their average, whole, as {"raw": ..., "ema": ...}, to evaluate.

        All processes must ask. Where an engine spreads the weights, each gathers them for as long as this lives.
        """
        weights: dict[str, dict[str, Tensor]] = {}
        for group, name, tensor in self.whole():
            weights.setdefault("raw" if group == "model" else group, {})[name] = tensor
        nets = {group: copy.deepcopy(self.blank) for group in weights}
        for group, net in nets.items():
            net.load_state_dict(weights[group], assign=True)
        return nets


def micro_batches(run: Run, step: int, events: Events) -> Iterator[Micro]:
    """Yield what this process does in a step: its virtual ranks, each in one piece or several."""
    classes, smoothing = run.recipe.data.classes, run.recipe.mix.smoothing
    size = run.recipe.pass_batch
    with run.norms.over_virtual_ranks(run.accelerator, len(run.hosted), run.recipe.virtual_ranks):
        for turn, rank in enumerate(run.hosted):
            run.norms.take_turn(turn)
            batch = run.next_batch()
            assert (batch.step, batch.virtual_rank) == (step, rank), "the loader gives batches in the places' order"
            images = as_seen(batch, run.recipe.model, run.device)
            events.after_batch(batch, images)
            keys = torch.from_numpy(batch.depth_keys).to(run.device, non_blocking=True)
            labels = torch.from_numpy(batch.labels).to(run.device, non_blocking=True)
            targets = mix_labels(labels, batch.mixing, classes=classes, smoothing=smoothing)
            answers = run.answers.of(batch, images) if run.answers else None
            for first in range(0, len(images), size):
                part = slice(first, first + size)
                last = rank == run.hosted[-1] and first + size >= len(images)
                told = None if answers is None else answers[part]
                yield Micro(rank, images[part], keys[part], targets[part], told, last)


def head_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return how many steps the head is trained alone, before all of the model is."""
    return round(recipe.finetune.head_epochs * steps_per_epoch)


def build(
    recipe: Recipe,
    index: Index,
    accelerator: Accelerator,
    *,
    workers: int,
    max_steps: int,
    snapshot: Snapshot | None,
    answers: Answers | None,
    left_out: Collection[int] = (),
) -> Run:
    """Build a run, and restore it from a snapshot where there is one.  `max_steps` of 0 is the whole recipe.

    Of gradual fine-tuning it is the phase that is due: the head alone, or all.
    """
    batches = TrainingBatches(recipe, index)
    total_steps = recipe.epochs * batches.order.steps_per_epoch
    first_step = snapshot.step if snapshot else 0
    last_step = max(first_step, min(total_steps, max_steps or total_steps))
    head_alone = first_step < (head_end := head_steps(recipe, batches.order.steps_per_epoch))
    if head_alone:
        last_step = min(last_step, head_end)
    net = build_student(recipe, head_alone=head_alone)
    if snapshot:
        net.load_state_dict(snapshot.tensors["model"])
    net.to(accelerator.device)
    blank, parts = without_weights(net), by_part(net)
    norms = BatchNorms(net)
    updates = first_step - sum(step < first_step for step in left_out)
    engine = ENGINES[engine_of_launch()](net, recipe, accelerator, updates)
    average = Average(recipe.ema, engine.local()) if recipe.ema.decay else None
    if snapshot:
        engine.restore_moments(snapshot.tensors["optimizer"])
        if average:
            average.tensors = {name: engine.part(name, whole) for name, whole in snapshot.tensors["ema"].items()}
    mine = hosted(recipe.virtual_ranks, accelerator.num_processes, accelerator.process_index)
    places = Places([step for step in range(first_step, last_step) if step not in left_out], mine)
    loader = load(batches, places, workers=workers, pin_memory=accelerator.device.type == "cuda")
    return Run(
        recipe=recipe,
        index=index,
        order=batches.order,
        accelerator=accelerator,
        net=net,
        by_part=parts,
        blank=blank,
        engine=engine,
        average=average,
        answers=answers,
        norms=norms,
        hosted=mine,
        first_step=first_step,
        last_step=last_step,
        total_steps=total_steps,
        left_out=left_out,
        batches=iter(loader) if first_step < last_step else iter(()),
    )
