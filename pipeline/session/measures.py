"""How good answers are: the measures of a split.

Shapes: C classes.
"""

from typing import Any, Final, NamedTuple

import torch
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
)

from pipeline.session.answers import Answers

BINS: Final = 15  # of the calibration error, as in its source: Guo et al. 2017, arXiv 1706.04599


class Confusion(NamedTuple):
    """How many samples of a class got another one's answer."""

    label: int
    answer: int
    samples: int


class OfClass(NamedTuple):
    """How good a model is on the samples of a class; `precision` and `f1` are in [0, 1], as `top1` is."""

    samples: int
    top1: float
    precision: float
    f1: float


class Measures(NamedTuple):
    """How good a model is on a split: shares in [0, 1], and the mean cross-entropy."""

    samples: int
    top1: float
    top5: float
    loss: float
    calibration_error: float  # mean distance of probability and accuracy, over bins (ECE)
    macro_f1: float  # mean over the classes that occur, as labels or answers
    classes: dict[int, OfClass]  # those with samples
    confusions: list[Confusion]  # all, the most frequent first


def measured(answers: Answers, classes: int) -> Measures:
    """Return how good answers are, of a model that knows so many classes; there is one answer at least."""
    first, labels, right = answers.classes[:, 0], answers.labels, answers.right
    of_classes: Any = {"num_classes": classes, "average": None}
    top1 = multiclass_accuracy(first, labels, **of_classes)
    precision = multiclass_precision(first, labels, **of_classes)
    f1 = multiclass_f1_score(first, labels, **of_classes)
    calibration = binary_calibration_error(answers.probabilities[:, 0].float(), right.long(), n_bins=BINS)
    counts = torch.bincount(labels, minlength=classes)
    pairs, times = torch.unique(torch.stack([labels, first])[:, ~right], dim=1, return_counts=True)
    confused = map(Confusion, *pairs.tolist(), times.tolist())
    return Measures(
        samples=len(labels),
        top1=right.double().mean().item(),
        top5=(answers.classes == labels[:, None]).any(1).double().mean().item(),
        loss=answers.losses.mean().item(),
        calibration_error=calibration.item(),
        macro_f1=multiclass_f1_score(first, labels, num_classes=classes, average="macro").item(),
        classes={
            number: OfClass(int(counts[number]), top1[number].item(), precision[number].item(), f1[number].item())
            for number in counts.nonzero().flatten().tolist()
        },
        confusions=sorted(confused, key=lambda one: (-one.samples, one.label, one.answer)),
    )
