"""The student: a timm model whose weights and stochastic depth are functions of the seed.

Shapes: B images of a batch, D stochastic-depth modules.
"""

from dataclasses import replace
from typing import Any, Final

import timm
import torch
from safetensors.torch import load_file
from timm.layers import DropPath
from timm.models import VisionTransformer, register_model
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.randomness import Purpose, generator, uniforms
from shards.errors import BadRequest

VIT_MINI: Final = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}


def register() -> None:
    """Add our own models to timm's registry; calling it again does nothing."""
    for entry in (vit_mini_patch4_32, vit_mini_distilled_patch4_32):
        if not timm.is_model(entry.__name__):
            register_model(entry)


def vit_mini_patch4_32(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """A ViT for small images: 32 px, patches of 4, 6 blocks of width 192 with 3 heads."""
    return VisionTransformer(**VIT_MINI | _without_timm_extras(overrides))


def vit_mini_distilled_patch4_32(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """The same with DeiT's distillation token."""
    return VisionTransformerDistilled(**VIT_MINI | _without_timm_extras(overrides))


def _without_timm_extras(overrides: dict[str, Any]) -> dict[str, Any]:
    """Drop what timm's factory hands to every entry and only its own builder takes."""
    return {name: value for name, value in overrides.items() if not name.startswith(("pretrained_", "cache_"))}


def build_model(settings: Model, classes: int, seed: int) -> nn.Module:
    """Return the timm model with weights drawn from `seed`, or read from where the settings say; on the CPU.

    Raises BadRequest where the model does not take the settings, or a checkpoint does not fit.
    """
    register()
    options: dict[str, Any] = {
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "drop_path_rate": settings.drop_path or None,
        "img_size": settings.img_size,
    }
    options = {name: value for name, value in options.items() if value is not None}
    # timm initialises from torch's global generator: give it a seed of its own, and the caller's state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, Purpose.INIT).integers(2**63)))
        try:
            model = timm.create_model(settings.name, pretrained=settings.pretrained, num_classes=classes, **options)
        except TypeError as error:
            raise BadRequest([f"--model.name {settings.name} does not take these settings: {error}."]) from error
        except (OSError, RuntimeError) as error:
            raise BadRequest([f"--model.pretrained: the weights of {settings.name} cannot be had: {error}"]) from error
    if settings.checkpoint:
        try:
            model.load_state_dict(load_file(settings.checkpoint))
        except (OSError, RuntimeError) as error:
            raise BadRequest([f"--model.checkpoint {settings.checkpoint}: {error}"]) from error
    return model


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
    """A timm model whose stochastic depth is drawn by view key."""

    drop_rates: Tensor  # [D]

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, module in list(net.named_modules()):
            if isinstance(module, DropPath):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, KeyedDropPath(module.drop_prob))
        self.drop_paths = [module for module in net.modules() if isinstance(module, KeyedDropPath)]
        rates = torch.tensor([module.drop_prob for module in self.drop_paths])
        self.register_buffer("drop_rates", rates, persistent=False)

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return the logits of normalised images [B, 3, H, W] whose views have the keys int64 [B]."""
        if self.drop_paths:
            kept = uniforms(keys, Purpose.DROP_PATH, len(self.drop_paths)) >= self.drop_rates  # [B, D]
            for module, scale in zip(self.drop_paths, (kept / (1 - self.drop_rates)).unbind(1), strict=True):
                module.scale = scale
        logits: Tensor = self.net(images)
        return logits


def parameter_count(settings: Model, classes: int) -> int:
    """Return the number of parameters of a model without making any; 0 if it cannot be built."""
    with torch.device("meta"):
        try:
            net = build_model(replace(settings, pretrained=False, checkpoint=""), classes, seed=0)
        except (BadRequest, RuntimeError, ValueError):
            return 0
    return sum(parameter.numel() for parameter in net.parameters())
