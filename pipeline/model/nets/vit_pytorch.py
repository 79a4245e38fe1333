"""The ViT of the package vit_pytorch, which tutorials train, registered with timm.

It differs from timm's in what a short training feels: patches are normalised before and after their projection, class
token and position embeddings start with a standard deviation of 1 and not 0.02, layers start as torch makes them,
layer norms have torch's epsilon, and queries, keys and values have no biases.
"""

from typing import Any

import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

CFG = {"num_classes": 1000, "input_size": (3, 224, 224), "fixed_input_size": True, "classifier": "head",
       "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # fmt: skip
default_cfgs = generate_default_cfgs({"vit_pytorch_tiny": CFG})


class NormedPatches(PatchEmbed):
    """timm's patches with a layer norm before the projection, and one after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pixel_norm = nn.LayerNorm(self.proj.weight[0].numel())
        self.norm = nn.LayerNorm(self.proj.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, width] of images [B, 3, H, W]."""
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).mT
        tokens: Tensor = self.norm(F.linear(self.pixel_norm(patches), self.proj.weight.flatten(1), self.proj.bias))
        return tokens


class ViTOfVitPytorch(VisionTransformer):
    """timm's ViT in vit_pytorch's layout."""

    def __init__(self, **options: Any) -> None:
        super().__init__(embed_layer=NormedPatches, norm_layer=nn.LayerNorm, qkv_bias=False, **options)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()
        for embedding in (self.pos_embed, self.cls_token):
            assert embedding is not None, "this ViT has both"
            nn.init.normal_(embedding)


@register_model
def vit_pytorch_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return Ti/16: width 192, 12 blocks, 3 heads."""
    shape: dict[str, Any] = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    settings = {"pretrained_filter_fn": checkpoint_filter_fn} | shape | options
    net: nn.Module = build_model_with_cfg(ViTOfVitPytorch, "vit_pytorch_tiny", pretrained, **settings)
    return net
