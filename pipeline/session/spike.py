"""Spikes: a loss or a gradient that is not finite, or a loss that leaps; and the steps that are skipped for one.

A run is a pure function of its recipe, so training again from before a spike leads into it again. What changes the
outcome is to skip steps: the spike's own (`skip`), or all from the last checkpoint that was due by steps to it
(`rollback`). Both go back to a checkpoint of before, and both are functions of the recipe again: a killed run that
resumes before a spike meets it, and does the same.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Final

from pipeline.config import Recipe, Spike

Span = tuple[int, int]  # of steps that are skipped, the first and the last of them

WINDOW: Final = 32  # steps before, whose median loss a leap is measured by


def steps_of(skipped: Iterable[Span]) -> frozenset[int]:
    """Return the steps that are skipped, counted from 0."""
    return frozenset(step for first, last in skipped for step in range(first, last + 1))


class SpikeFound(Exception):
    """A run met a spike that its policy skips."""

    def __init__(self, step: int, skipped: Sequence[Span], event: dict[str, Any]) -> None:
        super().__init__(event["event"])
        self.step = step  # the spike's, counted from 0
        self.event = event  # what was found, for metrics.jsonl
        self._skipped = skipped  # for the spikes before

    def may_start_from(self, step: int, recipe: Recipe) -> bool:
        """Return whether a checkpoint of so many finished steps will do.

        For `rollback` it must be one that was due by steps: where the others are depends on the clock.
        """
        by_steps = recipe.spike.policy == "skip" or step % recipe.checkpoint.every_steps == 0
        return step <= self.step and by_steps

    def skipped_steps(self, start: int, recipe: Recipe) -> list[Span]:
        """Return what the run skips from now on, which starts again after `start` finished steps."""
        return [*self._skipped, (self.step if recipe.spike.policy == "skip" else start, self.step)]


class Watch:
    """Tells a spike by the losses of the steps before; what a checkpoint must keep of it is `losses`."""

    def __init__(self, settings: Spike, losses: Iterable[float] = ()) -> None:
        self._settings = settings
        self.losses = list(losses)  # of the last steps, means over their images

    def judge(self, losses: Sequence[float], norm: float) -> tuple[str, list[int]]:
        """Return what is wrong with a step of these losses [K] and gradient norm, and the virtual ranks at fault.

        What is wrong is empty if nothing is.
        """
        everyone = list(range(len(losses)))
        infinite = [rank for rank in everyone if not math.isfinite(losses[rank])]
        if infinite:
            return "the loss is not finite", infinite
        if not math.isfinite(norm):
            return "the gradient is not finite", everyone
        loss = sum(losses) / len(losses)
        if self._settings.factor and len(self.losses) == WINDOW:
            usual = median(self.losses)
            if loss > (bound := self._settings.factor * usual):
                above = [rank for rank in everyone if losses[rank] > bound]
                return f"the loss leaps from {usual:.4g} to {loss:.4g}", above
        self.losses = [*self.losses, loss][-WINDOW:]
        return "", []
