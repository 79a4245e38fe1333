"""The best evaluation of a run so far: what is kept of its checkpoints for it, and when no better one comes any more.

All of it is a function of the evaluations before, and is saved with each checkpoint: a run that goes on takes the same
for the best, and ends at the same plateau.
"""

import math
from collections.abc import Mapping
from typing import Final, TypedDict

from pipeline.config import Metric
from pipeline.session.evaluate import Score

LOWER: Final = ("loss",)  # metrics that fall as a model gets better


class Record(TypedDict):
    """The best evaluation, as a checkpoint holds it."""

    metric: Metric
    value: float
    weights: str  # raw, or the average that had the value
    step: int
    waited: int  # evaluations since
    scores: dict[str, float]  # top-1 of all weights at that step


class Best:
    """The best evaluation by a metric, over all weights that are evaluated; the earliest of equal ones.

    `saved` is the record of a checkpoint that the run goes on from; one by another metric is left.
    """

    def __init__(self, metric: Metric, patience: int, saved: Record | None = None) -> None:
        self.metric: Final = metric
        self._patience = patience
        self.record = saved if saved and saved["metric"] == metric else None

    def note(self, step: int, scores: Mapping[str, Score]) -> bool:
        """Take note of an evaluation after `step` finished steps, and return whether it is the best so far.

        A value that is not finite is not the best of anything.
        """
        if self.metric == "none":
            return False
        sign = -1 if self.metric in LOWER else 1
        values: dict[str, float] = {name: getattr(score, self.metric) for name, score in scores.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        weights = max(finite, key=lambda name: sign * finite[name], default="")
        if not weights or (self.record and not sign * finite[weights] > sign * self.record["value"]):
            if self.record:
                self.record = {**self.record, "waited": self.record["waited"] + 1}
            return False
        top1 = {name: score.top1 for name, score in scores.items()}
        value = finite[weights]
        self.record = Record(metric=self.metric, value=value, weights=weights, step=step, waited=0, scores=top1)
        return True

    @property
    def at_plateau(self) -> bool:
        """Whether as many evaluations as `eval.patience` says brought nothing better."""
        return bool(self._patience and self.record and self.record["waited"] >= self._patience)

    def __str__(self) -> str:
        if not self.record:
            return "none"
        its = self.record
        return f"{its['metric']} {its['value']:.4f} of the {its['weights']} weights after step {its['step']}"
