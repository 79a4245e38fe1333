"""Every optimizer of timm's factory that a run can have: it goes on bit for bit, and what is told of it is so."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import Tensor, nn

from pipeline.config import Optim
from pipeline.job import REHEARSAL, resolve
from pipeline.model.build import build_model
from pipeline.model.finetune import rate_scales
from pipeline.request import Request
from pipeline.rules import hosting_problems
from pipeline.update.engine import Replicated
from pipeline.update.optimizer import (
    ELEMENTWISE,
    as_kept,
    as_tensor,
    build_optimizer,
    numbers_kept,
    optimizer_problems,
    update,
)
from shards.errors import BadRequest
from tests.tiny import TINY

NAMES = [name for name in list_optimizers() if not list(optimizer_problems(Optim(name=name, lr=1e-3)))]
STEPS = 3


def net() -> nn.Module:
    """Return a model with matrices, a convolution, vectors and an embedding."""
    return build_model(replace(TINY.model, width=24), 4, seed=0)


class Held(Replicated):
    """A net in one process, without what a launcher gives it."""

    def __init__(self, name: str) -> None:
        self.net = net()
        recipe = replace(TINY, optim=Optim(name=name, lr=1e-3, lr_batch=0))
        self.optimizer = build_optimizer(self.net, recipe, rate_scales(self.net, recipe.finetune))
        self.accelerator: Any = SimpleNamespace(device=torch.device("cpu"))

    def train(self, steps: range) -> None:
        for step in steps:
            rng = torch.Generator().manual_seed(step)
            for parameter in self.net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=rng)
            update(self.optimizer, lr=1e-3 / (step + 1), clip=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_that_is_saved_goes_on_bit_for_bit(name: str) -> None:
    unbroken, stopped = Held(name), Held(name)
    unbroken.train(range(2 * STEPS))
    stopped.train(range(STEPS))
    saved = {key: value.clone() for key, value in stopped.moments()}
    assert all(isinstance(value, Tensor) for value in saved.values())
    resumed = Held(name)
    resumed.net.load_state_dict(stopped.net.state_dict())
    resumed.restore_moments(saved)
    assert {key: value.dtype for key, value in resumed.moments()} == {key: value.dtype for key, value in saved.items()}
    resumed.train(range(STEPS, 2 * STEPS))
    tensors = resumed.net.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in unbroken.net.state_dict().items())


def test_all_of_timms_optimizers_are_there_but_for_those_with_a_reason() -> None:
    assert {"muon", "nmuon", "adamuon", "nadamuon", "lion", "adan", "adafactor", "lars", "sgd", "adopt"} <= set(NAMES)
    others = set(list_optimizers()) - set(NAMES)
    assert {name.rstrip("cw") for name in others if not name.startswith(("bnb", "fused"))} == {"adahessian", "kron"}


def stepped(name: str, tensors: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return tensors after a step of an optimizer for each gradient."""
    held = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in tensors])
    recipe = replace(TINY, optim=Optim(name=name, lr=1e-2, lr_batch=0))
    optimizer = build_optimizer(held, recipe, {key: 1.0 for key, _ in held.named_parameters()})
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.05  # of matrices and of their parts
    for of_step in gradients:
        for parameter, gradient in zip(held, of_step, strict=True):
            parameter.grad = gradient.clone()
        update(optimizer, lr=1e-2, clip=0.0)
    return [parameter.detach() for parameter in held]


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_an_optimizer_that_engines_may_share_updates_parts_as_it_does_the_whole(name: str) -> None:
    """DeepSpeed's parts are flat, and end anywhere."""
    rng = torch.Generator().manual_seed(0)
    whole = [torch.randn(32, 24, generator=rng)]
    gradients = [[torch.randn(32, 24, generator=rng)] for _ in range(4)]

    def parts(tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors[0].flatten().split([301, 467]))

    together = stepped(name, whole, gradients)[0].flatten()
    apart = torch.cat(stepped(name, parts(whole), [parts(of_step) for of_step in gradients]))
    torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["muon", "adafactor", "clion", "lars"])
def test_an_optimizer_that_looks_at_whole_parameters_is_refused_under_engines_that_share_them(name: str) -> None:
    recipe = replace(TINY, optim=replace(TINY.optim, name=name))
    assert list(hosting_problems(recipe, 3, "ddp")) == []
    (problem,) = hosting_problems(recipe, 3, "zero1")
    assert str(problem) == (
        f"--optim.name {name} needs each parameter in one piece, which zero1 takes apart. Take DDP."
    )
    cautious = replace(TINY, optim=replace(TINY.optim, name="lion", args=("caution=true",)))
    (problem,) = hosting_problems(cautious, 3, "fsdp2")
    assert "--optim.args caution=true needs each parameter in one piece" in str(problem)
    assert list(hosting_problems(replace(TINY, optim=replace(TINY.optim, name="lion")), 3, "fsdp2")) == []


def test_muon_takes_the_matrices_of_blocks_and_leaves_embeddings_and_heads_to_adamw() -> None:
    held = Held("muon")
    held.train(range(1))
    by_muon = {name for name, parameter in held.net.named_parameters() if held.optimizer.state[parameter]["use_muon"]}
    assert by_muon == {
        f"blocks.{block}.{layer}.weight"
        for block in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def complaints(**settings: Any) -> Iterator[str]:
    return map(str, optimizer_problems(Optim(lr=1e-3, **settings)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "moun"}, r"--optim.name moun is none of timm's optimizers; did you mean (\w+ or )*muon"),
        ({"name": "zzzz"}, "is none of timm's optimizers; timm's are: adabelief, "),
        ({"name": "adahessian"}, "needs second derivatives"),
        ({"name": "kron"}, "draws random numbers of its own"),
        ({"name": "bnbadam8bit"}, "is of bitsandbytes, which Vitrail does without"),
        ({"name": "muon", "args": ("ns_step=3",)}, r"muon has no argument ns_step; did you mean ns_steps"),
        ({"name": "muon", "args": ("ns_steps",)}, "--optim.args ns_steps: write an argument as key=value"),
        ({"name": "muon", "args": ("lr=1",)}, "has a field of its own, --optim.lr"),
        ({"name": "adamw", "args": ("betas=0.9,0.9",)}, "has a field of its own, --optim.betas"),
        ({"name": "muon", "args": ("fused=true",)}, "muon has no argument fused"),
        ({"name": "lion", "args": ("betas=2,0.9",)}, "lion does not take them"),
        ({"name": "muon", "args": ("ns_steps=many",)}, "muon does not take them"),
        ({"name": "lion", "args": ("betas=0.9,0.8", "betas=0.9,0.7")}, "betas is given 2 times"),
    ],
)
def test_what_no_optimizer_takes_is_refused_with_what_is_near(settings: Any, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        raise BadRequest(list(optimizer_problems(Optim(lr=1e-3, **settings))))


def test_a_wrong_optimizer_is_found_when_a_request_is_resolved() -> None:
    wrong = replace(TINY, optim=replace(TINY.optim, name="moun"), epochs=0)
    with pytest.raises(BadRequest) as caught:
        resolve(Request(recipe=wrong), REHEARSAL)
    assert {problem.field for problem in caught.value.problems} == {"optim.name", "epochs"}


def test_arguments_are_numbers_pairs_and_words() -> None:
    assert list(complaints(name="lion", args=("betas=0.9,0.95", "caution=true"))) == []
    recipe = replace(TINY, optim=Optim(name="lion", lr=1e-3, args=("betas=0.9,0.95", "caution=true")))
    groups = build_optimizer(nn.Linear(2, 2), recipe, {"weight": 1.0, "bias": 1.0}).param_groups
    assert [(group["betas"], group["caution"]) for group in groups] == [((0.9, 0.95), True)] * 2
    recipe = replace(TINY, optim=Optim(name="adamw", lr=1e-3, args=("amsgrad=true",)))
    assert build_optimizer(nn.Linear(2, 2), recipe, {"weight": 1.0, "bias": 1.0}).defaults["amsgrad"] is True


def test_the_numbers_that_an_optimizer_keeps_are_counted() -> None:
    kept = {name: numbers_kept(Optim(name=name, lr=1e-3)) for name in ("adamw", "sgd", "muon", "adan", "adafactorbv")}
    assert kept == pytest.approx({"adamw": 2, "sgd": 1, "muon": 1, "adan": 4, "adafactorbv": 0.53}, abs=0.05)


def test_numbers_of_python_come_back_as_they_were() -> None:
    for value in (True, 3, 0.25):
        back = as_kept(as_tensor(value))
        assert back == value
        assert type(back) is type(value)
