"""What we use of libraries beyond their public interfaces, and nothing else does.

`setup.cfg` caps their versions, and `tests/pipeline/test_library_internals.py` notices when one of these changes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.vgg import _filter_fn
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter


def end_workers(batches: Any) -> None:
    """End the worker processes behind an iterator of torch's DataLoader, where it has some."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()


def cpu_has_bf16() -> bool:
    """Return whether this processor computes in bf16, not only stores it (AVX512-BF16)."""
    supported: bool = torch.cpu._is_avx512_bf16_supported()
    return supported


def batch_norms(net: nn.Module) -> list[Any]:
    """Return a model's batch norms of any number of dimensions."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def vit_names(tensors: Mapping[str, Tensor], net: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights of a ViT made elsewhere by timm's names, position embeddings resized to the model's grid."""
    renamed: dict[str, Tensor] = checkpoint_filter_fn(dict(tensors), net)
    return renamed


def vgg_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of torchvision's VGG by timm's names."""
    renamed: dict[str, Tensor] = _filter_fn(dict(tensors))
    return renamed


def move_towards(tensors: list[Tensor], ends: list[Tensor], share: float) -> None:
    """Move tensors by a share of the way to others, in place, all in one kernel where there is one."""
    torch._foreach_lerp_(tensors, ends, weight=share)


def link_optimizer_state(optimizer: Any) -> None:
    """Let parameters know of their state in DeepSpeed's ZeRO 1 and 2.

    DeepSpeed 0.19 does it when the first of several parameter groups is stepped, too early for the others.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
