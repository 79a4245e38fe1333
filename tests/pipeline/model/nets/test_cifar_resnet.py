"""The CIFAR ResNets."""

import pytest
import timm
import torch
from torch import nn


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_cifar_resnets_have_the_parameters_of_the_paper(depth: int) -> None:
    # He et al. 2015, table 6, in millions
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
    with torch.device("meta"):
        net = timm.create_model(f"resnet{depth}_cifar")
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count / 1e6 == pytest.approx(millions[depth], abs=0.006 if depth < 110 else 0.05)
    assert len([module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]) == depth
