"""The optimizer and its update."""

from dataclasses import replace

import torch

from pipeline.config import Finetune, Model, Optim
from pipeline.model.build import build_model
from pipeline.model.finetune import rate_scales
from pipeline.update.optimizer import build_optimizer, update
from tests.tiny import TINY


def test_weight_decay_skips_biases_norms_tokens_and_positions() -> None:
    net = build_model(Model(name="deit_tiny_distilled_patch16_224", img_size=32), 4, seed=0)
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = build_optimizer(net, TINY, rate_scales(net, TINY.finetune)).param_groups
    skipped = {names[parameter] for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "blocks.0.norm1.weight"} <= skipped
    assert all(name.endswith(("bias", "token", "pos_embed")) or "norm" in name for name in skipped)


def test_a_step_moves_each_parameter_by_its_share_of_the_rate() -> None:
    net = build_model(TINY.model, 4, seed=0)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    scales = rate_scales(net, Finetune(rates="geometric", decay=0.5))
    optimizer = build_optimizer(
        net, replace(TINY, optim=Optim(name="sgd", lr=1, momentum=0.0, weight_decay=0.0)), scales
    )
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(optimizer, lr=0.1, clip=0.0)
    for name, value in net.named_parameters():
        moved = torch.full_like(value, 0.1 * scales[name])
        torch.testing.assert_close(before[name] - value, moved, rtol=1e-3, atol=1e-6)
