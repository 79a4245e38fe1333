"""One update moves each tensor as the official code does: model, loss, weight decay and optimizer in one."""

from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Distill, Mix, Model, Optim, Recipe
from pipeline.data.mix import mix_labels
from pipeline.model.build import build_student
from pipeline.model.finetune import rate_scales
from pipeline.model.student import heads
from pipeline.objective import objective
from pipeline.update.optimizer import build_optimizer, update
from tests.reference import inputs
from tests.tiny import HERE

FILE: Final = inputs.read("step")
BATCH: Final = FILE["batch"]
CLASSES: Final = FILE["model"]["classes"]


def recipe_of(name: str, case: dict[str, Any]) -> Recipe:
    if "distilled" in name:
        network = "deit_tiny_distilled_patch16_224"
    else:
        network = "deit3_small_patch16_224" if case["gamma"] else "deit_tiny_patch16_224"
    shape = FILE["model"]
    return replace(
        HERE,
        model=Model(name=network, img_size=shape["image_size"], width=shape["width"], depth=shape["depth"],
                    heads=shape["heads"]),
        data=replace(HERE.data, classes=CLASSES),
        mix=Mix(smoothing=case["smoothing"], loss="bce" if "bce" in name else "ce"),
        distill=Distill(teacher="resnet18") if "distilled" in name else Distill(),
        optim=Optim(name=case["optimizer"], lr=case["lr"], weight_decay=FILE["weight_decay"]),
    )  # fmt: skip


def mixed(values: Tensor) -> Tensor:
    lam = FILE["mixup_lambda"]
    return lam * values + (1 - lam) * values.flip(0)


def norm_and_probe(name: str, tensor: Tensor) -> tuple[float, float]:
    """Return the norm and the sum of value times v(500, i), without the keys' biases, which only rounding moves."""
    values, probe = tensor.double().flatten(), torch.from_numpy(inputs.waves(inputs.PROBE, tensor.numel()))
    if name.endswith("attn.qkv.bias"):
        (query, _, value), (of_query, _, of_value) = values.chunk(3), probe.chunk(3)
        values, probe = torch.cat([query, value]), torch.cat([of_query, of_value])
    return values.norm().item(), (values * probe).sum().item()


def decayed(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    return sorted(names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"])


@pytest.mark.parametrize("name", FILE["cases"])
def test_an_update_is_the_official_one(name: str) -> None:
    case = FILE["cases"][name]
    recipe = recipe_of(name, case)
    net = build_student(recipe).train()
    filled = inputs.fill(net, case["gamma"])
    assert filled == pytest.approx(case["fill"], rel=1e-6)
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    optimizer = build_optimizer(net, recipe, rate_scales(net, recipe.finetune))
    assert decayed(net, optimizer) == case["decayed"]

    images = mixed(inputs.images(BATCH, recipe.model.img_size))
    labels = mix_labels(inputs.labels(BATCH, CLASSES), None, classes=CLASSES, smoothing=case["smoothing"])
    answers = inputs.logits(2, BATCH, CLASSES).argmax(1) if recipe.distill.teacher else None
    loss = objective(heads(net, images), mixed(labels), answers, recipe).mean()
    assert loss.item() == pytest.approx(case["loss"], rel=2e-6)
    loss.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in net.named_parameters() if parameter.grad is not None}
    assert update(optimizer, lr=case["lr"], clip=0.0).item() == pytest.approx(case["gradient_l2"], rel=2e-6)

    assert gradients.keys() == before.keys() == case["tensors"].keys()
    for key, parameter in net.named_parameters():
        gradient_norm, gradient_probe, update_norm, update_probe, *_ = case["tensors"][key]
        norm, probe = norm_and_probe(key, gradients[key])
        assert norm == pytest.approx(gradient_norm, rel=2e-6), key
        assert probe == pytest.approx(gradient_probe, abs=1e-5 * gradient_norm), key
        norm, probe = norm_and_probe(key, parameter.detach() - before[key])
        assert norm == pytest.approx(update_norm, rel=1e-4), key
        assert probe == pytest.approx(update_probe, abs=1e-3 * update_norm), key
