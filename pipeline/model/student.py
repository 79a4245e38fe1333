"""The student: a timm model whose stochastic depth is a function of its views, with one head or two.

Shapes: B images of a batch, C classes, D stochastic-depth modules, H heads: 2 where a distillation token is taught
by a teacher, first the class token's, then the distillation token's; else 1.
"""

from typing import Literal

import torch
from timm.layers import DropPath
from timm.models import VisionTransformerDistilled
from torch import Tensor, nn

from pipeline.config import Compute
from pipeline.model.finetune import frozen_modules
from pipeline.randomness import Purpose, uniforms


def heads(net: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [H, B, C] of a model for normalised images [B, 3, S, S], in training and in evaluation."""
    if not (isinstance(net, VisionTransformerDistilled) and net.distilled_training):
        logits: Tensor = net(images)
        return logits[None]
    features = net.forward_features(images)
    return torch.stack([net.head(features[:, 0]), net.head_dist(features[:, 1])])


def fuse(logits: Tensor, fusion: Literal["paper", "code"]) -> Tensor:
    """Return the fused logits [B, C] of heads [H, B, C]: of the mean softmax (DeiT, section 4), or the mean."""
    if len(logits) == 1 or fusion == "code":
        return logits.mean(0)
    return logits.log_softmax(2).logsumexp(0)


class KeyedDropPath(nn.Module):
    """Stochastic depth that takes its decision for each view from the student instead of drawing it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale: Tensor | None = None  # [B]: 1 / (1 - drop_prob) where the path is kept, else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [B, ...], with dropped paths zeroed and the others scaled up; x itself in eval mode."""
        if not self.training:
            return x
        assert self.scale is not None, "the student hands the scales in before every training pass"
        return x * self.scale.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


class Student(nn.Module):
    """A timm model whose stochastic depth is drawn by view key, computed as asked."""

    drop_rates: Tensor  # [D]

    def __init__(self, net: nn.Module, compute: Compute | None = None) -> None:
        super().__init__()
        compute = compute or Compute()
        self.net = net
        self.layout = torch.channels_last if compute.channels_last else torch.contiguous_format
        for name, module in list(net.named_modules()):
            if isinstance(module, DropPath):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, KeyedDropPath(module.drop_prob))
        self.frozen = frozen_modules(net)
        self.drop_paths = [module for module in net.modules() if isinstance(module, KeyedDropPath)]
        rates = torch.tensor([module.drop_prob for module in self.drop_paths])
        self.register_buffer("drop_rates", rates, persistent=False)
        if compute.compile:
            # by block: one compilation serves all, and engines exchange a block's gradients when it is done
            for part in getattr(net, "blocks", [net]):
                part.compile()

    def train(self, mode: bool = True) -> "Student":
        """Set the mode of what is trained; what is not stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return the logits [H, B, C] of normalised images [B, 3, S, S] whose views have the keys int64 [B]."""
        if self.drop_paths:
            kept = uniforms(keys, Purpose.DROP_PATH, len(self.drop_paths)) >= self.drop_rates  # [B, D]
            for module, scale in zip(self.drop_paths, (kept / (1 - self.drop_rates)).unbind(1), strict=True):
                module.scale = scale
        return heads(self.net, images.contiguous(memory_format=self.layout))
