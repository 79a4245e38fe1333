"""The loss of each image, against formulas written out with numpy, and against the numbers of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Distill, Recipe
from pipeline.data.mix import Mixing, mix_labels
from pipeline.model.student import fuse
from pipeline.objective import agreement, distillation, objective
from tests.reference.inputs import read
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


OFFICIAL = read("losses")
LABELS = torch.tensor(OFFICIAL["inputs"]["labels"])
STUDENT, DIST, OUTPUTS = (torch.tensor(OFFICIAL["inputs"][name]) for name in ("student", "dist", "teacher"))
SMOOTHED, PLAIN = (torch.tensor(OFFICIAL["targets"][f"smoothing_{smoothing}"]) for smoothing in ("0.1", "0"))
HARD = Distill(loss="hard", weight=0.5)
CODE = Distill(loss="soft", kl="code", weight=0.1, tau=3.0)
EQUATION_2 = replace(CODE, kl="paper")


def test_mixed_targets_are_those_of_the_official_code() -> None:
    count = len(LABELS)
    mixing = Mixing(torch.full((count,), 0.3), torch.zeros(count, 4, dtype=torch.long), torch.arange(count).flip(0))
    for smoothing, expected in ((0.1, SMOOTHED), (0.0, PLAIN)):
        ours = mix_labels(LABELS, mixing, classes=10, smoothing=smoothing)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss", "targets", "distill"),
    [
        ("soft_target_cross_entropy", "ce", SMOOTHED, Distill()),
        ("bce_smoothing_0", "bce", PLAIN, Distill()),
        ("bce_smoothing_0.1_all_classes_positive", "bce", SMOOTHED, Distill()),
        (
            "label_smoothing_cross_entropy_without_mixing",
            "ce",
            mix_labels(LABELS, None, classes=10, smoothing=0.1),
            Distill(),
        ),
        ("hard_distillation_alpha_0.5", "ce", SMOOTHED, HARD),
        ("soft_distillation_official_tau_3_alpha_0.1", "ce", SMOOTHED, CODE),
        ("soft_distillation_equation_2_tau_3_lambda_0.1_teacher_first", "ce", SMOOTHED, EQUATION_2),
    ],
)
def test_losses_and_gradients_are_the_official_codes(name: str, loss: Any, targets: Tensor, distill: Distill) -> None:
    """Of Eq. 2 the numbers follow the formula, with the teacher first: the official code divides it by the classes."""
    expected = OFFICIAL["losses"][name]
    logits = torch.stack([STUDENT, DIST]).requires_grad_()
    taught = name.partition("distillation")[1] != ""
    outputs = (OUTPUTS.argmax(1) if distill.loss == "hard" else OUTPUTS) if taught else None
    recipe = replace(TINY, mix=replace(TINY.mix, loss=loss), distill=distill)
    losses = objective(logits, targets, outputs, recipe)
    losses.mean().backward()
    torch.testing.assert_close(losses, torch.tensor(expected["per_image"]), rtol=0, atol=2e-6)
    assert losses.mean().item() == pytest.approx(expected["loss"], abs=2e-6)
    assert logits.grad is not None
    for gradient, head in zip(logits.grad, ("student", "dist"), strict=True):
        if f"gradient_l2_{head}" in expected:
            assert gradient.norm().item() == pytest.approx(expected[f"gradient_l2_{head}"], abs=2e-6)
            row = torch.tensor(expected[f"gradient_row_0_{head}"])
            torch.testing.assert_close(gradient[0], row, rtol=0, atol=2e-6)


def test_the_parts_of_distillation_are_the_official_codes() -> None:
    expected = OFFICIAL["components"]
    classes = torch.tensor(expected["teacher_argmax"])
    assert torch.equal(OUTPUTS.argmax(1), classes)
    hard, soft = torch.tensor(expected["cross_entropy_with_teacher_class"]), expected["kl_teacher_student_tau_3"]
    torch.testing.assert_close(distillation(DIST, classes, HARD), hard, rtol=0, atol=2e-6)
    torch.testing.assert_close(distillation(DIST, OUTPUTS, EQUATION_2), 9 * torch.tensor(soft), rtol=0, atol=1e-5)


def test_heads_are_fused_as_in_the_paper_and_as_in_the_official_code() -> None:
    """They disagree on two images of four."""
    expected, heads = OFFICIAL["fusion"], torch.stack([STUDENT, DIST])
    paper, code = fuse(heads, "paper"), fuse(heads, "code")
    torch.testing.assert_close(code, torch.tensor(expected["mean_of_logits"]), rtol=0, atol=2e-6)
    softmaxes = torch.tensor(expected["mean_of_softmaxes"])
    torch.testing.assert_close(paper.softmax(1), softmaxes, rtol=0, atol=2e-6)
    assert paper.argmax(1).tolist() == expected["argmax_softmax"]
    assert code.argmax(1).tolist() == expected["argmax_logits"]


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_class_weights_are_factors_of_each_class_and_not_of_a_teacher(loss: Any) -> None:
    weights = np.array([0.5, 2.0, 1.0, 0.0, 3.0, 1.0, 1.0])
    recipe = replace(of(Distill(loss="hard", weight=0.25)), mix=replace(TINY.mix, loss=loss))
    answers = TEACHER.argmax(1)
    if loss == "ce":
        by_hand = -(weights * TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1)
    else:
        whole, right = TARGETS > 0, 1 / (1 + np.exp(-LABEL_LOGITS))
        by_hand = -(weights * np.where(whole, np.log(right), np.log(1 - right))).mean(1)
    by_hand = 0.75 * by_hand + 0.25 * -np.log(softmax(TAUGHT_LOGITS)[np.arange(6), answers])
    ours = objective(TWO, torch.from_numpy(TARGETS), torch.from_numpy(answers), recipe, torch.from_numpy(weights))
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)
