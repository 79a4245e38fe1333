"""The loss of each image.  Shapes: B images, C classes, H heads (`pipeline/model/student.py`).

Sources: DeiT, arXiv 2012.12877, Eq. 2 and 3; deit/losses.py for what it does otherwise.
"""

import torch.nn.functional as F
from torch import Tensor

from pipeline.config import Distill, Recipe


def objective(
    logits: Tensor, targets: Tensor, outputs: Tensor | None, recipe: Recipe, class_weights: Tensor | None = None
) -> Tensor:
    """Return the loss of each image, [B], for logits [H, B, C] and soft targets [B, C].

    The first head learns the targets: by cross-entropy, or by the mean over classes of the binary one, to which every
    class in the mixture is 1 (deit/engine.py; RSB, 2110.00476). Where there are outputs of a teacher, the last head,
    which is the same one without a distillation token, learns them with the share `distill.weight`.

    `class_weights` [C] are factors of each class's part of what is learnt of the targets, not of a teacher. The mean
    over a batch stays one over its images: torch's own for soft targets.
    """
    distill = recipe.distill
    if recipe.mix.loss == "bce":
        whole = targets.gt(0).to(targets.dtype)
        loss = F.binary_cross_entropy_with_logits(logits[0], whole, weight=class_weights, reduction="none").mean(1)
    else:
        loss = F.cross_entropy(logits[0], targets, weight=class_weights, reduction="none")
    if outputs is None:
        return loss
    return (1 - distill.weight) * loss + distill.weight * distillation(logits[-1], outputs, distill)


def distillation(logits: Tensor, outputs: Tensor, distill: Distill) -> Tensor:
    """Return the loss [B] of logits [B, C] against a teacher's classes int64 [B], or its log-probabilities [B, C].

    Hard: cross-entropy with the teacher's class (Eq. 3). Soft: tau^2 times the divergence of the student's from the
    teacher's distribution, both at temperature tau (Eq. 2); the official code sums it over batch and classes and
    divides by both, which makes it 1/C of that.
    """
    if distill.loss == "hard":
        return F.cross_entropy(logits, outputs, reduction="none")
    student, teacher = ((scores / distill.tau).log_softmax(1) for scores in (logits, outputs))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * distill.tau**2
    return divergence / logits.shape[1] if distill.kl == "code" else divergence


def agreement(logits: Tensor, outputs: Tensor) -> Tensor:
    """Return of how many images the last head of logits [H, B, C] gives the teacher's class; a scalar."""
    classes = outputs if outputs.ndim == 1 else outputs.argmax(1)
    return (logits[-1].argmax(1) == classes).sum()
