"""The optimizer and its update."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from pipeline.config import Finetune, Model, Optim
from pipeline.model.build import build_model
from pipeline.model.finetune import rate_scales
from pipeline.update.optimizer import build_optimizer, update
from recipes.transfer_cifar10 import RECIPE as TRANSFER
from tests.tiny import TINY


def not_decayed(name: str) -> set[str]:
    net = build_model(Model(name=name, img_size=32, depth=1), 4, seed=0)
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = build_optimizer(net, TINY, rate_scales(net, TINY.finetune)).param_groups
    return {names[parameter] for group in groups if not group["weight_decay"] for parameter in group["params"]}


def test_weight_decay_skips_biases_norms_class_token_and_positions() -> None:
    skipped = not_decayed("deit_tiny_distilled_patch16_224")
    assert {"cls_token", "pos_embed", "head.bias", "blocks.0.norm1.weight"} <= skipped
    assert all(name.endswith(("bias", "cls_token", "pos_embed")) or "norm" in name for name in skipped)


@pytest.mark.parametrize("name", ["vitc_1gf", "vitp_1gf"])
def test_in_early_convolutions_only_biases_and_gains_of_norms_do_not_decay(name: str) -> None:
    gains = {"norm.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight"}
    gains |= {f"patch_embed.convs.{number}.weight" for number in (1, 4, 7, 10)} if name == "vitc_1gf" else set()
    assert {name for name in not_decayed(name) if not name.endswith("bias")} == gains


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


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_a_gradient_of_the_size_of_epsilon_moves_a_parameter_by_half_a_step(name: Any) -> None:
    """As LayerScale's gradients are: apex's LAMB and deit's AdamW have an epsilon of 1e-8."""
    net = nn.Linear(4, 4, bias=False)
    before = net.weight.detach().clone()
    recipe = replace(TINY, optim=Optim(name=name, lr=1, weight_decay=0.0))
    optimizer = build_optimizer(net, recipe, {"weight": 1.0})
    net.weight.grad = torch.full_like(net.weight, 1e-8)
    update(optimizer, lr=0.1, clip=0.0)
    torch.testing.assert_close(before - net.weight, torch.full_like(net.weight, 0.05), rtol=1e-3, atol=1e-6)


def test_the_epsilon_of_the_recipe_is_the_optimizers() -> None:
    net = nn.Linear(4, 4)
    for name in ("adam", "adamw", "lamb"):
        recipe = replace(TINY, optim=replace(TINY.optim, name=name, eps=1e-5))
        groups = build_optimizer(net, recipe, dict.fromkeys(("weight", "bias"), 1.0)).param_groups
        assert {group["eps"] for group in groups} == {1e-5}, name


@pytest.mark.parametrize(("nesterov", "second"), [(False, 1.9), (True, 2.71)])
def test_sgd_is_plain_or_nesterovs(nesterov: bool, second: float) -> None:
    """Of gradients 1 the momentum is 1, then 1.9; Nesterov's steps look ahead: 1 + 0.9 x 1, then 1 + 0.9 x 1.9."""
    net = nn.Linear(1, 1, bias=False)
    recipe = replace(TINY, optim=Optim(name="sgd", lr=1, weight_decay=0.0, nesterov=nesterov))
    optimizer = build_optimizer(net, recipe, {"weight": 1.0})
    for moved in (1.9 if nesterov else 1.0, second):
        before = net.weight.item()
        net.weight.grad = torch.ones_like(net.weight)
        update(optimizer, lr=0.1, clip=0.0)
        assert before - net.weight.item() == pytest.approx(0.1 * moved, abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_that_is_not_fused_may_take_many_parameters_at_a_time(name: Any) -> None:
    plain = replace(TINY, optim=replace(TINY.optim, name=name), compute=replace(TINY.compute, fused_optimizer=False))
    net = build_model(TINY.model, classes=4, seed=0)
    made = build_optimizer(net, plain, rate_scales(net, TINY.finetune))
    assert (made.defaults["fused"], made.defaults["foreach"]) == (None, None)  # torch chooses, by the device


def test_the_sgd_of_deits_transfer_is_timms() -> None:
    """timm's `sgd`, which deit/main.py takes, is Nesterov's; `momentum` would be the plain one."""
    theirs = create_optimizer_v2(nn.Linear(1, 1), opt="sgd", lr=0.01, momentum=0.9)
    ours = build_optimizer(nn.Linear(1, 1), TRANSFER, dict.fromkeys(("weight", "bias"), 1.0))
    for name in ("nesterov", "momentum", "dampening"):
        assert ours.defaults[name] == theirs.defaults[name], name
    assert ours.defaults["nesterov"]
