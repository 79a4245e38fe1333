"""The inputs that the numbers beside this module were computed on: functions of whole numbers, in float64.

`tests/reference/README.md` says where the numbers come from.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FOLDER: Final = Path(__file__).parent
PERIOD: Final = 10007  # a quadratic modulo a number comes again after that number

IMAGES: Final = 1000  # n of images, of logits (the distillation head's and the teacher's follow), and of probes
LOGITS: Final = 2000
PROBE: Final = 500


def read(name: str) -> Any:
    """Return what tests/reference/NAME.json holds."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def waves(n: int, count: int) -> NDArray[np.float64]:
    """Return v(n, i) = sin(0.37 ((i i + (n + 11) i + 101 n) mod 10007)) for i from 0, float64 [count]."""
    i = np.arange(PERIOD)
    return np.resize(np.sin(0.37 * ((i * i + (n + 11) * i + 101 * n) % PERIOD)), count)


def wave(n: int, *shape: int, factor: float = 1.0) -> Tensor:
    """Return factor v(n, i), row by row, float32 [*shape]."""
    return torch.from_numpy(factor * waves(n, int(np.prod(shape)))).float().view(shape)


def images(batch: int, size: int) -> Tensor:
    """Return normalised images, float32 [B, 3, S, S]."""
    return wave(IMAGES, batch, 3, size, size, factor=1.5)


def labels(batch: int, classes: int) -> Tensor:
    """Return the class of each image, int64 [B]."""
    return torch.arange(batch) * 7 % classes


def logits(number: int, batch: int, classes: int) -> Tensor:
    """Return logits, float32 [B, C]: number 0 is the student's, 1 its distillation head's, 2 the teacher's."""
    return wave(LOGITS + number, batch, classes, factor=3)


def formula_image() -> NDArray[np.uint8]:
    """Return the image of augment.json, [224, 224, 3]."""
    y, x = np.mgrid[:224, :224]
    return np.stack([255 * x // 223, 255 * y // 223, (7 * x + 13 * y) % 256], axis=2).astype(np.uint8)


def fill(net: nn.Module, gamma: float | None = None) -> dict[str, float]:
    """Give a model the weights of the formulas, LayerScale around `gamma`, and return what `fill` in the files says.

    n is the place among the sorted names of the state dict. What a model keeps fixed is neither filled nor counted.
    """
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    tensors = {name: tensor for name, tensor in sorted(net.state_dict().items())
               if name not in fixed and not name.endswith("num_batches_tracked")}  # fmt: skip
    for n, (name, tensor) in enumerate(tensors.items()):
        filled = _filled(name, tensor.shape, waves(n, tensor.numel()), gamma)
        tensor.copy_(torch.from_numpy(filled).view(tensor.shape))
    return {
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
        "sum": sum(tensor.double().sum().item() for tensor in tensors.values()),
        "l2": sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5,
    }


def _filled(name: str, shape: torch.Size, v: NDArray[np.float64], gamma: float | None) -> NDArray[np.float64]:
    match name.rpartition(".")[2]:
        case "gamma":
            assert gamma is not None, "a model with LayerScale is filled around a gamma"
            return gamma * (1 + 0.5 * v)
        case "cls_token" | "dist_token" | "pos_embed":
            return 0.5 * v
        case "running_var":
            return 1 + 0.5 * v
        case "bias" | "running_mean":
            return 0.1 * v
        case "weight" if len(shape) == 1:
            return 1 + 0.1 * v
        case "weight":
            return np.sqrt(2 * shape[0] / v.size) * v
        case other:
            raise AssertionError(f"no formula for {other}")
