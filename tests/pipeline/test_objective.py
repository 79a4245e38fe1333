"""The loss of each image, against formulas written out with numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Distill, Recipe
from pipeline.objective import agreement, objective
from tests.tiny import TINY

RNG = np.random.default_rng(0)


LABEL_LOGITS, TAUGHT_LOGITS, TEACHER = (RNG.normal(size=(6, 7)) * 3 for _ in range(3))


TARGETS = RNG.dirichlet(np.ones(7), size=6)


TWO = torch.from_numpy(np.stack([LABEL_LOGITS, TAUGHT_LOGITS]))


def of(distill: Distill) -> Recipe:
    return replace(TINY, distill=distill)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_hard_loss_is_equation_3() -> None:
    answers = TEACHER.argmax(1)
    by_hand = 0.5 * -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1)
    by_hand += 0.5 * -np.log(softmax(TAUGHT_LOGITS)[np.arange(6), answers])
    ours = objective(TWO, torch.from_numpy(TARGETS), torch.from_numpy(answers), of(Distill(loss="hard", weight=0.5)))
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)


@pytest.mark.parametrize("token", [True, False])
def test_the_soft_loss_is_equation_2(token: bool) -> None:
    tau, lam = 3.0, 0.1
    logits = TWO if token else TWO[:1]
    student = softmax(logits[-1].numpy() / tau)
    teacher = softmax(TEACHER / tau)
    divergence = (teacher * np.log(teacher / student)).sum(1)
    by_hand = (1 - lam) * -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1) + lam * tau**2 * divergence
    settings = Distill(loss="soft", weight=lam, tau=tau, token=token)
    ours = objective(logits, torch.from_numpy(TARGETS), torch.from_numpy(TEACHER), of(settings))
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)


def test_the_soft_loss_of_the_official_code_is_summed_and_divided_by_batch_and_classes() -> None:
    tau, alpha = 2.0, 0.5
    student, teacher = np.log(softmax(TAUGHT_LOGITS / tau)), np.log(softmax(TEACHER / tau))
    # deit/losses.py: F.kl_div(..., reduction="sum", log_target=True) * T * T / outputs_kd.numel()
    code = (np.exp(teacher) * (teacher - student)).sum() * tau * tau / TAUGHT_LOGITS.size
    base = -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1).mean()
    settings = Distill(loss="soft", kl="code", weight=alpha, tau=tau)
    ours = objective(TWO, torch.from_numpy(TARGETS), torch.from_numpy(TEACHER), of(settings)).mean()
    assert float(ours) == pytest.approx(base * (1 - alpha) + code * alpha, abs=1e-6)


def test_without_outputs_the_loss_is_that_of_the_targets() -> None:
    ours = objective(TWO[:1], torch.from_numpy(TARGETS), None, TINY)
    np.testing.assert_allclose(ours, -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1), atol=1e-6)


def test_the_binary_loss_takes_every_mixed_class_as_a_whole_one() -> None:
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    logits = torch.tensor([[[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]]])
    recipe = replace(TINY, mix=replace(TINY.mix, loss="bce", smoothing=0.0))
    expected = nn.BCEWithLogitsLoss()(logits[0], torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(objective(logits, targets, None, recipe).mean(), expected)


def test_agreement_counts_equal_classes() -> None:
    classes = TWO[1].argmax(1)
    assert int(agreement(TWO, classes)) == 6
    assert int(agreement(TWO, (classes + 1) % 7)) == 0
    assert int(agreement(TWO, TWO[1])) == 6
