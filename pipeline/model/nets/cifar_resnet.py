"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2), registered with timm.

Shortcuts are the paper's option A: strided and padded with zeros, without parameters. Parameters have the names of
the weights that are published for them (github.com/akamaster/pytorch_resnet_cifar10).
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

CFG = {"num_classes": 10, "input_size": (3, 32, 32), "crop_pct": 1.0, "classifier": "linear", "first_conv": "conv1"}
DEPTHS = (20, 32, 44, 56, 110)
default_cfgs = generate_default_cfgs({f"resnet{depth}_cifar": CFG for depth in DEPTHS})


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a stride halves the side and doubles the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, H / stride, W / stride] for [B, inputs, H, W]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        missing = y.shape[1] - x.shape[1]
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, missing // 2, missing // 2))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.num_classes, self.num_features = num_classes, 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(inputs, outputs), *(Block(outputs, outputs) for _ in range(blocks - 1)))
            for inputs, outputs in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes] for images [B, in_chans, H, W] of any size."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _register(depth: int) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        net: nn.Module = build_model_with_cfg(
            CifarResNet, create.__name__, pretrained, depth=depth, feature_cfg=None, **options
        )
        return net

    create.__name__ = f"resnet{depth}_cifar"
    register_model(create)


for _depth in DEPTHS:
    _register(_depth)
