"""The learning rate: a pure function of the step, with nothing to save and nothing to step at the wrong time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.config import DecayShape, Recipe, ScheduleName

DECAYS: Final[Mapping[DecayShape, Callable[[float], float]]] = {
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class Schedule:
    """The steps of a recipe whose epochs have `steps_per_epoch` of them, and the rate of each."""

    recipe: Recipe
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole recipe."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def head_steps(self) -> int:
        """Steps that the head is trained alone, before all of the model is."""
        return round(self.recipe.finetune.head_epochs * self.steps_per_epoch)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        optim = self.recipe.optim
        if step < self.head_steps:
            return self.recipe.finetune.head_lr
        if optim.schedule == "wsd":
            return warmup_stable_decay(
                step - self.head_steps,
                peak=self.recipe.peak_lr,
                floor=optim.min_lr,
                warmup=optim.warmup_epochs * self.steps_per_epoch,
                decay=optim.decay_epochs * self.steps_per_epoch,
                total=self.total_steps - self.head_steps,
                start=optim.warmup_lr,
                shape=optim.decay_shape,
            )
        return cosine(
            step - self.head_steps,
            peak=self.recipe.peak_lr,
            floor=optim.min_lr,
            warmup=optim.warmup_epochs * self.steps_per_epoch,
            total=self.total_steps - self.head_steps,
            start=optim.warmup_lr,
            schedule=optim.schedule,
        )

    def last_step(self, first_step: int, max_steps: int) -> int:
        """Return where training from `first_step` on ends: at `max_steps`, or at the recipe's end where that is 0."""
        return max(first_step, min(self.total_steps, max_steps or self.total_steps))

    def phase_start(self, first_step: int) -> int:
        """Return where the phase of fine-tuning that `first_step` lies in begins."""
        return self.head_steps if first_step >= self.head_steps else 0

    def phase_end(self, first_step: int, max_steps: int) -> int:
        """Return where the phase of fine-tuning that `first_step` lies in ends, or training does."""
        last_step = self.last_step(first_step, max_steps)
        return min(last_step, self.head_steps) if first_step < self.head_steps else last_step


def warmup_stable_decay(
    step: float,
    *,
    peak: float,
    floor: float,
    warmup: float,
    decay: float,
    total: int,
    start: float,
    shape: DecayShape = "linear",
) -> float:
    """Return the learning rate of a step: linear from `start`, then `peak`, then down over the last `decay` steps.

    The rate would reach `floor` at step `total`, one after the last. Source: MiniCPM, 2404.06395, section 4; the shapes
    are torchtitan's linear, 1 - sqrt (Hägele et al., 2405.18392, Eq. 2) and half a cosine.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = max(step - (total - decay), 0) / max(decay, 1)
    return floor + (peak - floor) * DECAYS[shape](progress)


def cosine(
    step: float,
    *,
    peak: float,
    floor: float,
    warmup: float,
    total: int,
    start: float,
    schedule: ScheduleName = "timm",
) -> float:
    """Return the learning rate of a step: linear from `start` over `warmup` steps, then half a cosine from `peak`.

    The rate would reach `floor` at step `total`, one after the last. The sources differ in how the two meet. In timm's,
    which DeiT takes, the cosine runs from step 0 on, hidden by the warm-up; in pycls's the warm-up is a factor of that
    cosine; in big_vision's the cosine begins where the warm-up ends. timm and pycls evaluate the formula once an epoch,
    and deit/main.py one epoch late, so that two epochs have the rate `start`; here it is by step, at the step's place.
    """
    begin = warmup if schedule == "big_vision" else 0
    progress = max(step - begin, 0) / max(total - begin, 1)
    rate = floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
    if step >= warmup:
        return rate
    share = (start + (peak - start) * step / warmup) / peak
    return share * (rate if schedule == "pycls" else peak)
