"""The moving average of the weights against timm's."""

from collections.abc import Iterator

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from pipeline.update.ema import Ema

STEPS = 12


def net() -> nn.Module:
    """Return a model with parameters, running statistics and a counter."""
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def training(model: nn.Module) -> Iterator[int]:
    """Change a model as training does, and yield the steps that are done, from 1."""
    rng = torch.Generator().manual_seed(5)
    model.train()
    for step in range(1, STEPS + 1):
        model(torch.randn(6, 4, generator=rng))  # moves the statistics, counts
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng))
        yield step


# timm is told the step where the decay warms up; told it without a warm-up, it would copy the weights of the first one
@pytest.mark.parametrize(("warmup", "decay"), [(True, 0.9), (True, 0.3), (False, 0.9), (False, 0.99996)])
def test_the_average_is_timms_after_every_step(warmup: bool, decay: float) -> None:
    model = net()
    theirs = ModelEmaV3(model, decay=decay, use_warmup=warmup)
    ours = Ema(model.state_dict(), decay, warmup=warmup)
    for step in training(model):
        theirs.update(model, step=step if warmup else None)
        ours.update(model.state_dict(), step)
        torch.testing.assert_close(ours.tensors, dict(theirs.module.state_dict()), rtol=1e-6, atol=1e-7)


def test_a_decay_that_warms_up_is_bounded_by_the_setting() -> None:
    start, end = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    moved = {}
    for step in (1, 2, 3, 1000):
        ema = Ema(start, 0.5, warmup=True)
        ema.update(end, step)
        moved[step] = ema.tensors["w"].item()
    assert moved == pytest.approx({1: 1.0, 2: 2 ** (-2 / 3), 3: 0.5, 1000: 0.5})


def test_counters_are_copied() -> None:
    model = net()
    ema = Ema(model.state_dict(), 0.9, warmup=True)
    for step in training(model):
        ema.update(model.state_dict(), step)
        assert ema.tensors["1.num_batches_tracked"].item() == step


def test_the_average_has_memory_of_its_own() -> None:
    weights = {"w": torch.zeros(2), "n": torch.tensor(3)}
    ema = Ema(weights, 0.9, warmup=True)
    for value in weights.values():
        value.add_(1)
    assert ema.tensors["w"].tolist() == [0, 0]
    assert ema.tensors["n"].item() == 3
