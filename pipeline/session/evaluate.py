"""Evaluation: every sample of a split once, the same numbers on any hosting."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.data.batch import EvaluationBatches, Unusable
from pipeline.data.loader import Prepared, load
from pipeline.devices import pins
from pipeline.job import Job
from pipeline.session.answers import Predictions, predict
from shards.index import Index

HEADS: Final = ("class", "distilled")  # of a model with a distillation token


class Score(NamedTuple):
    """Of a split: shares of right answers in [0, 1], mean cross-entropy, and how many samples were counted.

    `heads`: the share of right answers of each head alone, where a model has two.
    """

    top1: float
    top5: float
    loss: float
    samples: int
    heads: dict[str, float]


def evaluation_loader(job: Job, index: Index, accelerator: Accelerator) -> DataLoader[Any]:
    """Return the loader of this process's parts of a split: part p goes to process p mod W, none is padded."""
    batches = EvaluationBatches(job.recipe, index)
    parts = range(job.hosting.process, len(batches), job.hosting.processes)
    return load(
        batches,
        parts,
        workers=job.hosting.workers,
        pin_memory=pins(accelerator.device),
        remote=index.cache is not None,
    )


def counted(by_head: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return what is added up over parts, float32 [4 + H], for logits [H, B, C] of the heads and [B, C] of the model.

    Right answers, labels among the five best, cross-entropy, images; and right answers of each head.
    """
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    count = loss.new_full((), len(labels))  # on the device: a number of the host's would be waited for
    right = (by_head.argmax(2) == labels).sum(1)
    return torch.stack([best[:, 0].sum(), best.sum(), loss, count, *right])


@torch.inference_mode()
def evaluate(
    nets: Mapping[str, nn.Module],
    loader: DataLoader[Any],
    accelerator: Accelerator,
    note: Callable[[Predictions], None] = lambda _: None,
) -> tuple[dict[str, Score], list[Unusable]]:
    """Return the score of each net in evaluation mode, all on one reading of the split, and the unusable samples here.

    The parts are the same on any hosting and are added up in their order, so the numbers are equal to the last
    digit on any number of processes of the same kind. `note` is told what each net says of each part here.
    """
    assert isinstance(loader.dataset, Prepared)
    batches = loader.dataset.batches
    assert isinstance(batches, EvaluationBatches)
    recipe = batches.recipe
    two = len(HEADS) if recipe.distill.teacher and recipe.distill.token else 0
    # of a part: float32 holds what is counted of it exactly, and is what every accelerator has
    sums = {name: torch.zeros(len(batches), 4 + two, device=accelerator.device) for name in nets}
    unusable: list[Unusable] = []
    for predictions in predict(nets, recipe, loader, accelerator, unusable):
        note(predictions)
        sums[predictions.net][predictions.part] = counted(predictions.by_head, predictions.logits, predictions.labels)[
            : 4 + two
        ]
    totals = accelerator.reduce(torch.stack([*sums.values()]), "sum").cpu().double().sum(1).tolist()
    scores = {}
    for name, (top1, top5, loss, samples, *by_head) in zip(nets, totals, strict=True):
        count = max(samples, 1)
        alone = {head: right / count for head, right in zip(HEADS[:two], by_head, strict=True)}
        scores[name] = Score(top1 / count, top5 / count, loss / count, int(samples), alone)
    return scores, unusable
