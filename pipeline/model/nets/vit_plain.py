"""The ViT of "Better plain ViT baselines for ImageNet-1k" (2205.01580), registered with timm.

No class token but the mean of all tokens, and position embeddings that are sines and cosines, and not learned.
"""

from typing import Any

from timm.layers import build_sincos2d_pos_embed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

CFG = {"num_classes": 1000, "input_size": (3, 224, 224), "fixed_input_size": True, "classifier": "head",
       "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # fmt: skip
default_cfgs = generate_default_cfgs({"vit_small_plain": CFG})


class PlainViT(VisionTransformer):
    """timm's ViT with fixed position embeddings; they are in the weights, and no optimizer sees them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(class_token=False, global_pool="avg", fc_norm=False, **options)
        device = self.patch_embed.proj.weight.device
        table = build_sincos2d_pos_embed(list(self.patch_embed.grid_size), self.embed_dim, device=device)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)


@register_model
def vit_small_plain(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return S/16: width 384, 12 blocks, 6 heads, a linear head."""
    shape: dict[str, Any] = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    net: nn.Module = build_model_with_cfg(
        PlainViT, "vit_small_plain", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **(shape | options)
    )
    return net
