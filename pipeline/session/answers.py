"""What a model answers for each sample of a split, and how good that is: the same numbers on any hosting.

Shapes: S samples that could be used, K answers a sample, C classes.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
)

from pipeline.config import Recipe
from pipeline.data.batch import EvalBatch, Unusable
from pipeline.data.device import normalize
from pipeline.model.student import fuse, heads
from shards.errors import VitrailError

ANSWERS: Final = 5  # kept of a sample, the most probable ones
BINS: Final = 15  # of the calibration error, as in its source: Guo et al. 2017, arXiv 1706.04599


class Answers(NamedTuple):
    """The answers of a model, by sample, on the CPU; the most probable first."""

    samples: Tensor  # int64 [S], ascending
    labels: Tensor  # int64 [S]
    classes: Tensor  # int64 [S, K]
    probabilities: Tensor  # float64 [S, K]
    losses: Tensor  # float64 [S], cross-entropy

    @property
    def right(self) -> Tensor:
        """Whether the first answer is the label, bool [S]."""
        return self.classes[:, 0] == self.labels


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


@torch.inference_mode()
def answers_of(
    net: nn.Module,
    recipe: Recipe,
    batches: Iterable[EvalBatch],
    size: int,
    accelerator: Accelerator,
    numbers: NDArray[np.int64],
) -> tuple[Answers, list[Unusable]]:
    """Return the answers of a model in evaluation mode for a split of `size` samples, and those that are unusable.

    All processes must ask, each with the batches of its parts, and get all answers. `numbers` are what the classes of
    the data are called by the model, [classes of the data]. Raises VitrailError unless every sample came once.
    """
    count = min(ANSWERS, recipe.data.classes)
    # a row a sample: how often it came, label, loss, answers, probabilities; processes add up what each has
    table = torch.zeros(size, 3 + 2 * count, dtype=torch.float64, device=accelerator.device)
    found: list[Unusable] = []
    for batch in batches:
        found += batch.unusable
        if not len(batch.labels):
            continue
        images = normalize(batch.images, recipe.model, accelerator.device)
        labels = torch.from_numpy(numbers[batch.labels]).to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            by_head = heads(net, images).float()
        logits = fuse(by_head, recipe.distill.fusion)
        best = logits.softmax(1).topk(count)
        losses = F.cross_entropy(logits, labels, reduction="none")
        rows = torch.column_stack([torch.ones_like(losses), labels, losses, best.indices, best.values])
        table[torch.from_numpy(batch.samples).to(accelerator.device)] += rows.double()
    table = accelerator.reduce(table, "sum").cpu()
    unusable = sorted(gather_object(found))
    came = table[:, 0]
    usable = torch.ones(size)
    usable[[one.sample for one in unusable]] = 0
    if not torch.equal(came, usable.double()):
        wrong = int((came != usable).sum())
        raise VitrailError(f"{wrong} of {size} samples came not once: a mistake in Vitrail. Please report it.")
    (samples,) = came.nonzero(as_tuple=True)
    kept = table[samples]
    return (
        Answers(samples, kept[:, 1].long(), kept[:, 3 : 3 + count].long(), kept[:, 3 + count :], kept[:, 2]),
        unusable,
    )


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
