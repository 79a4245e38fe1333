"""The ViT of "Better plain ViT baselines for ImageNet-1k" (2205.01580), registered with timm.

No class token but the mean of all tokens, position embeddings that are sines and cosines and not learned, GELU by its
tanh approximation, and a head that starts at zero: initial weights and all numbers are big_vision's. Its configuration
vit_s16_i1k.py has a layer and a tanh before the head (`rep_size`); the paper has the linear head beside it.
"""

from typing import Any

import torch
from timm.layers import lecun_normal_
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

CFG = {"num_classes": 1000, "input_size": (3, 224, 224), "fixed_input_size": True, "classifier": "head",
       "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # fmt: skip
default_cfgs = generate_default_cfgs({"vit_small_plain": CFG, "vit_small_plain_mlp_head": CFG})


class PlainViT(VisionTransformer):
    """timm's ViT with fixed position embeddings; they are in the weights, and no optimizer sees them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            class_token=False, global_pool="avg", fc_norm=False, act_layer="gelu_tanh", weight_init="jax", **options
        )
        for name, weight in self.named_parameters():
            if name.endswith("attn.qkv.weight"):
                for projection in weight.detach().chunk(3):  # each is a layer of its own there
                    nn.init.xavier_uniform_(projection)
        height, width = self.patch_embed.grid_size
        table = position_table(height, width, self.embed_dim)[None]
        self.pos_embed = nn.Parameter(table.to(self.patch_embed.proj.weight), requires_grad=False)


class PlainViTWithMlpHead(PlainViT):
    """With a layer and a tanh between the mean of the tokens and the head."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # not `pre_logits`, which timm leaves out of weights that it loads
        self.representation = nn.Linear(self.embed_dim, self.embed_dim, device=self.patch_embed.proj.weight.device)
        lecun_normal_(self.representation.weight)
        nn.init.zeros_(self.representation.bias)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes] of normed tokens [B, N, width], or what the head makes them of [B, width]."""
        features = torch.tanh(self.representation(super().forward_head(x, pre_logits=True)))
        return features if pre_logits else self.head(features)


def position_table(height: int, width: int, dim: int) -> Tensor:
    """Return sines and cosines [height width, dim]: of the token (y, x) sin(x f), cos(x f), sin(y f), cos(y f).

    f falls from 1 to 1/10,000 in dim / 4 equal ratios. Raises ValueError for a `dim` that has no such quarter.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"its position embeddings take a width of 8 or more that 4 divides, not {dim}")
    frequencies = 10_000 ** -torch.linspace(0, 1, dim // 4, dtype=torch.float64, device="cpu")
    y, x = torch.cartesian_prod(*(torch.arange(n, device="cpu") for n in (height, width))).unbind(1)
    angles = [places[:, None] * frequencies for places in (x, y)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def _create(kind: type[PlainViT], name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    shape: dict[str, Any] = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    net: nn.Module = build_model_with_cfg(
        kind, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **(shape | options)
    )
    return net


@register_model
def vit_small_plain(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return S/16: width 384, 12 blocks, 6 heads, a linear head."""
    return _create(PlainViT, "vit_small_plain", pretrained, options)


@register_model
def vit_small_plain_mlp_head(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return S/16 with a layer of its width before the head, as big_vision's configuration for ImageNet-1k has it."""
    return _create(PlainViTWithMlpHead, "vit_small_plain_mlp_head", pretrained, options)
