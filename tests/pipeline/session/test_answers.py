"""The measures of answers, against counts that anybody can follow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from pipeline.session.answers import Answers
from pipeline.session.measures import Confusion, measured

CLASSES = 9


def answers() -> tuple[Answers, torch.Tensor]:
    """Return answers of 200 samples of 7 of 9 classes, and all their probabilities."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (200,), generator=generator)
    logits = torch.randn(200, CLASSES, generator=generator) + 1.5 * F.one_hot(labels, CLASSES)
    probabilities = logits.double().softmax(1)
    best = probabilities.topk(5)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    return Answers(torch.arange(200), labels, best.indices, best.values, losses), probabilities


def test_measures_are_those_of_a_count() -> None:
    found, probabilities = answers()
    measures = measured(found, CLASSES)
    first, labels = found.classes[:, 0].numpy(), found.labels.numpy()
    assert measures.samples == 200
    assert measures.top1 == np.mean(first == labels)
    ranks = (probabilities > probabilities[torch.arange(200), found.labels][:, None]).sum(1)
    assert measures.top5 == pytest.approx((ranks < 5).double().mean().item())
    assert measures.loss == pytest.approx(-probabilities[range(200), labels].log().mean().item())
    assert measures.macro_f1 == pytest.approx(f1_score(labels, first, average="macro"))
    expected = multiclass_calibration_error(probabilities.float(), found.labels, CLASSES)
    assert measures.calibration_error == pytest.approx(expected.item())
    assert 0 < measures.top1 < measures.top5 < 1


def test_classes_and_confusions_are_those_of_a_count() -> None:
    found, _ = answers()
    measures = measured(found, CLASSES)
    first, labels = found.classes[:, 0].tolist(), found.labels.tolist()
    assert list(measures.classes) == sorted(set(labels))
    for number, of in measures.classes.items():
        said, own = first.count(number), labels.count(number)
        right = sum(a == b == number for a, b in zip(first, labels, strict=True))
        assert of.samples == own
        assert (of.top1, of.precision) == pytest.approx((right / own, right / said))
        assert of.f1 == pytest.approx(2 * right / (own + said))
    pairs = [pair for pair in zip(labels, first, strict=True) if pair[0] != pair[1]]
    assert measures.confusions == sorted(
        (Confusion(*pair, pairs.count(pair)) for pair in set(pairs)), key=lambda one: (-one.samples, *one[:2])
    )


def test_answers_that_are_all_right_confuse_nothing() -> None:
    found, _ = answers()
    right = found._replace(labels=found.classes[:, 0])
    measures = measured(right, CLASSES)
    assert (measures.top1, measures.macro_f1, measures.confusions) == (1, 1, [])
