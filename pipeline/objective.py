"""The loss of each image.  Shapes: B images, C classes."""

import torch.nn.functional as F
from torch import Tensor


def objective(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image, float32 [B], for logits and soft targets [B, C]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
