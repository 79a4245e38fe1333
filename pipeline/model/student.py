"""The student: a model whose stochastic depth and dropout are functions of its views, with one head or two.

Shapes: B images of a batch, C classes, D stochastic-depth modules, H heads: 2 where a distillation token is taught
by a teacher, first the class token's, then the distillation token's; else 1.
"""

from typing import Literal

import torch
from timm.layers import DropPath
from timm.models import VisionTransformerDistilled
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.config import Compute
from pipeline.device_randomness import derived_keys, kept_of, uniforms
from pipeline.model.finetune import frozen_modules
from pipeline.model.prefix import Cut, suffix
from pipeline.randomness import Purpose


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


def compile_blocks(net: nn.Module) -> None:
    """Have torch compile each block of a model where it is first used, or a model that has none as a whole.

    One compilation serves all blocks, and engines exchange a block's gradients when it is done.
    """
    for part in getattr(net, "blocks", [net]):
        part.compile()


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


class KeyedDropout(nn.Module):
    """Dropout that draws what it drops of a view from a key of the view's and its own, which the student hands in."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keys: Tensor | None = None  # int64 [B]

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [B, ...] or parts of the images one after the other, with values zeroed and the others scaled up.

        In eval mode, x itself.
        """
        if not self.training:
            return x
        assert self.keys is not None, "the student hands the keys in before every training pass"
        kept = kept_values(self.keys, self.rate, x.numel() // len(self.keys))
        return torch.where(kept.reshape(x.shape), x / (1 - self.rate), 0)


# one operation for torch.compile, which does not wrap around as the integers in it do
@torch.library.custom_op("vitrail::kept_values", mutates_args=())
def kept_values(keys: Tensor, rate: float, count: int) -> Tensor:
    """Return which of `count` values of each key are kept, bool [B, count], for int64 keys [B]."""
    return kept_of(keys, Purpose.DROPOUT, rate, count)


@kept_values.register_fake
def _kept_values(keys: Tensor, rate: float, count: int) -> Tensor:
    return keys.new_empty((len(keys), count), dtype=torch.bool)


def keyed(module: nn.Module) -> nn.Module | None:
    """Return what drops by view key in the place of a module of a library's; None where that drops nothing."""
    match module:
        case DropPath():
            return KeyedDropPath(module.drop_prob)
        case StochasticDepth(p=rate) if rate:
            return KeyedDropPath(rate)
        case nn.Dropout(p=rate) if rate:
            return KeyedDropout(rate)
    return None


def layout_of(compute: Compute) -> torch.memory_format:
    """Return the memory layout that images pass in."""
    return torch.channels_last if compute.channels_last else torch.contiguous_format


class Student(nn.Module):
    """A model whose stochastic depth and dropout are drawn by view key, computed as asked."""

    drop_rates: Tensor  # [D]

    def __init__(
        self, net: nn.Module, compute: Compute | None = None, *, compiled: bool = False, cut: Cut | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.cut = cut  # where there is one, it takes rows of the prefix instead of images
        self.layout = layout_of(compute or Compute())
        for name, module in list(net.named_modules()):
            if instead := keyed(module):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, instead)
        self.frozen = frozen_modules(net)
        self.drop_paths = [module for module in net.modules() if isinstance(module, KeyedDropPath)]
        self.dropouts = [module for module in net.modules() if isinstance(module, KeyedDropout)]
        rates = torch.tensor([module.drop_prob for module in self.drop_paths])
        self.register_buffer("drop_rates", rates, persistent=False)
        if compiled:
            compile_blocks(net)

    def train(self, mode: bool = True) -> "Student":
        """Set the mode of what is trained; what is not stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return the logits [H, B, C] of normalised images [B, 3, S, S] whose views have the keys int64 [B].

        Of a network that is cut in two `images` are rows [B, ...] (`pipeline/model/prefix.py`).
        """
        if self.drop_paths:
            kept = uniforms(keys, Purpose.DROP_PATH, len(self.drop_paths)) >= self.drop_rates  # [B, D]
            for module, scale in zip(self.drop_paths, (kept / (1 - self.drop_rates)).unbind(1), strict=True):
                module.scale = scale
        if self.dropouts:
            for dropout, own in zip(
                self.dropouts, derived_keys(keys, Purpose.DROPOUT, len(self.dropouts)).unbind(1), strict=True
            ):
                dropout.keys = own
        if self.cut:
            # one layout, and so the same kernels, whether a row was computed or read
            return suffix(self.net, images.contiguous(), self.cut)[None]
        return heads(self.net, images.contiguous(memory_format=self.layout))
