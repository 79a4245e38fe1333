"""The optimizer and its update."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from timm.optim import Lamb, param_groups_weight_decay
from torch import Tensor, nn

from pipeline.config import Recipe


def build_optimizer(
    net: nn.Module, recipe: Recipe, scales: Mapping[str, float], step: int = 0
) -> torch.optim.Optimizer:
    """Return the optimizer of a timm model that has taken `step` steps; `scales` are shares of the rate, by name.

    Weight decay skips biases, 1-D parameters and what the model names (class token, position embeddings): timm's rule,
    as in DeiT. The distillation token decays, as in the published runs, whose timm knew of none.
    """
    settings, fused = recipe.optim, recipe.compute.fused_optimizer
    skipped: Collection[str] = set(getattr(net, "no_weight_decay", set)()) - {"dist_token"}
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups: list[dict[str, Any]] = []
    for decayed in param_groups_weight_decay(net, settings.weight_decay, no_weight_decay_list=skipped):
        by_scale: dict[float, list[Tensor]] = {}
        for parameter in decayed["params"]:
            by_scale.setdefault(scales[names[parameter]], []).append(parameter)
        for scale, parameters in by_scale.items():
            groups.append({**decayed, "params": parameters, "lr_scale": scale})
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused
        )
    if settings.name == "lamb":  # timm's counts its steps in the groups, where no checkpoint looks
        counted = [{**group, "step": torch.tensor(float(step))} for group in groups]
        return Lamb(counted, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def update(optimizer: torch.optim.Optimizer, *, lr: float, clip: float) -> Tensor:
    """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar on the device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    set_rates(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
