"""The student: a timm model whose weights and stochastic depth are functions of the seed.

Shapes: B images of a batch, D stochastic-depth modules.
"""

from dataclasses import replace
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.randomness import Purpose, generator, uniforms
from shards.errors import BadRequest


def build_model(settings: Model, classes: int, seed: int) -> nn.Module:
    """Return the timm model with weights drawn from `seed`, or read from where the settings say; on the CPU.

    Raises BadRequest where the model does not take the settings, or a checkpoint does not fit.
    """
    options = shape(settings) | ({"drop_path_rate": settings.drop_path} if settings.drop_path else {})
    # timm initialises from torch's global generator: give it a seed of its own, and the caller's state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, Purpose.INIT).integers(2**63)))
        try:
            model = timm.create_model(settings.name, pretrained=settings.pretrained, num_classes=classes, **options)
        except (TypeError, ValueError, AssertionError, ArithmeticError) as error:  # whatever timm's models say it with
            raise BadRequest([f"--model.name {settings.name} does not take these settings: {error}."]) from error
        except (OSError, RuntimeError) as error:
            raise BadRequest([f"--model.pretrained: the weights of {settings.name} cannot be had: {error}"]) from error
    if settings.checkpoint:
        try:
            model.load_state_dict(load_file(settings.checkpoint))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise BadRequest([f"--model.checkpoint {settings.checkpoint}: {error}"]) from error
    return model


def shape(settings: Model) -> dict[str, Any]:
    """Return what a model's settings change of the timm model it is named for, as timm's arguments."""
    arguments = {
        "img_size": settings.img_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
    }
    return {name: value for name, value in arguments.items() if value is not None}


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
    """Return the number of parameters of a model without making any.  Raises BadRequest if it cannot be built."""
    with torch.device("meta"):
        net = build_model(replace(settings, pretrained=False, checkpoint=""), classes, seed=0)
    return sum(parameter.numel() for parameter in net.parameters())
