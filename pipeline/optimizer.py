"""The optimizer and its update."""

from collections.abc import Collection

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from pipeline.config import Optim


def build_optimizer(net: nn.Module, settings: Optim) -> torch.optim.Optimizer:
    """Return the optimizer of a timm model.

    Weight decay skips biases, 1-D parameters and what the model names (tokens, position embeddings): timm's rule,
    as in DeiT.
    """
    skipped: Collection[str] = getattr(net, "no_weight_decay", set)()
    groups = param_groups_weight_decay(net, settings.weight_decay, no_weight_decay_list=skipped)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, fused=True)


def update(optimizer: torch.optim.Optimizer, *, lr: float, clip: float) -> Tensor:
    """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar on the device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return norm
