"""What a model answers for each sample of a split: the same on any hosting.

Shapes: B samples of a part, S samples that could be used, K answers a sample, H heads, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.data.batch import EvalBatch, Unusable
from pipeline.data.device import normalize
from pipeline.model.student import fuse, heads
from shards.errors import VitrailError

ANSWERS: Final = 5  # kept of a sample, the most probable ones


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


class Gathering:
    """Gathers the answers for a split of `size` samples from all processes, without waiting for the device."""

    def __init__(self, size: int, classes: int, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._count = min(ANSWERS, classes)
        # a row a sample: how often it came, label, loss, answers, probabilities; processes add up what each has
        # in float32, which holds a class's number exactly and is what every accelerator has
        self._table = torch.zeros(size, 3 + 2 * self._count, device=accelerator.device)

    def note(self, samples: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Take note of labels [B] and logits [B, C] for some samples [B] of the split, all on the device."""
        best = logits.softmax(1).topk(self._count)
        losses = F.cross_entropy(logits, labels, reduction="none")
        rows = torch.column_stack([torch.ones_like(losses), labels, losses, best.indices, best.values])
        self._table[samples] += rows

    def of_all(self, unusable: Sequence[int] | None = None) -> Answers:
        """Return the answers of all processes, which all must ask for.

        Raises VitrailError unless every sample came once, but for those that are `unusable`, if they are named.
        """
        table = self._accelerator.reduce(self._table, "sum").cpu().double()
        came = table[:, 0]
        if unusable is not None:
            usable = torch.ones_like(came)
            usable[list(unusable)] = 0
            if wrong := int((came != usable).sum()):
                raise VitrailError(
                    f"{wrong} of {len(came)} samples came not once: a mistake in Vitrail. Please report it."
                )
        (samples,) = came.nonzero(as_tuple=True)
        _, labels, losses, classes, probabilities = table[samples].split([1, 1, 1, self._count, self._count], 1)
        return Answers(samples, labels.long().flatten(), classes.long(), probabilities, losses.flatten())


class Predictions(NamedTuple):
    """What a model predicts for a part of a split, on the device."""

    net: str
    part: int
    samples: Tensor  # int64 [B]
    labels: Tensor  # int64 [B]
    by_head: Tensor  # float32 [H, B, C], logits of each head
    logits: Tensor  # float32 [B, C], of the model


@torch.inference_mode()
def predict(
    nets: Mapping[str, nn.Module],
    recipe: Recipe,
    batches: Iterable[EvalBatch],
    accelerator: Accelerator,
    unusable: list[Unusable],
) -> Iterator[Predictions]:
    """Yield the predictions of each net, in evaluation mode, for each part; add what cannot be used to `unusable`."""
    for batch in batches:
        unusable += batch.unusable
        if not len(batch.records.block):
            continue
        records = batch.records.to(accelerator.device)
        images = normalize(records.field("pixels"), recipe.model)
        samples, labels = records.field("sample"), records.field("label")
        for name, net in nets.items():
            with accelerator.autocast():
                by_head = heads(net, images).float()
            yield Predictions(name, batch.part, samples, labels, by_head, fuse(by_head, recipe.distill.fusion))


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
    gathering = Gathering(size, recipe.data.classes, accelerator)
    called = torch.from_numpy(numbers).to(accelerator.device)
    found: list[Unusable] = []
    for predictions in predict({"": net}, recipe, batches, accelerator, found):
        gathering.note(predictions.samples, called[predictions.labels], predictions.logits)
    unusable = sorted(gather_object(found))
    return gathering.of_all([one.sample for one in unusable]), unusable
