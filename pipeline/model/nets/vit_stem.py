"""ViT_P and ViT_C of "Early Convolutions Help Transformers See Better" (2106.14881), registered with timm.

ViT_P has the usual patchify stem: one convolution whose stride is the patch. ViT_C has 3x3 convolutions instead, and a
block less (Table 1, section 4). Initial weights are those of the authors' code, pycls.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any, Final, NamedTuple

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn


class Size(NamedTuple):
    """A column of Table 1; `blocks` are ViT_P's."""

    width: int
    mlp_ratio: float
    heads: int
    blocks: int


SIZES: Final = {
    "1gf": Size(192, 3, 3, 12),
    "4gf": Size(384, 3, 6, 12),
    "18gf": Size(768, 4, 12, 12),
    "36gf": Size(1024, 4, 16, 14),
}
LARGE: Final = ((64, 2), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))  # channels, stride: 18 and 36 GF
CFG = {"num_classes": 1000, "input_size": (3, 224, 224), "fixed_input_size": True, "classifier": "head"}
default_cfgs = generate_default_cfgs({f"vit{stem}_{size}": CFG for stem in "pc" for size in SIZES})


class ConvStem(nn.Module):
    """3x3 convolutions, each with batch norm and ReLU, and a 1x1 convolution with neither (section 4, Table 3).

    Takes the place of timm's PatchEmbed. Without `layers`, channels double from one to the next up to `embed_dim`, each
    with a stride of 2: as many as `patch_size` asks for, four for 16 as in ViT_C-1GF and -4GF.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        layers: tuple[tuple[int, int], ...] = (),
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        layers = layers or tuple((embed_dim >> k, 2) for k in reversed(range(halvings)))
        height, width = to_2tuple(img_size)
        if (
            2 ** len([1 for _, stride in layers if stride == 2]) != patch_size
            or height % patch_size
            or width % patch_size
        ):
            raise ValueError(f"its convolutions do not take patches of {patch_size} in images of {img_size} px")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        modules: list[nn.Module] = []
        for channels, stride in layers:
            modules += [
                nn.Conv2d(in_chans, channels, 3, stride=stride, padding=1, bias=False, **factory),
                nn.BatchNorm2d(channels, **factory),
                nn.ReLU(),
            ]
            in_chans = channels
        self.convs = nn.Sequential(*modules)
        self.proj = nn.Conv2d(in_chans, embed_dim, 1, bias=bias, **factory)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (height // patch_size, width // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, embed_dim] for images [B, in_chans, S, S]."""
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)


class EarlyConvViT(VisionTransformer):
    """timm's ViT as the authors start and decay it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(weight_init="jax", **options)  # Xavier, and a head of zeros
        for name, weight in self.named_parameters():
            if name.endswith("attn.proj.weight"):
                bound = sqrt(1 / weight.shape[1])
                nn.init.uniform_(weight, -bound, bound)
        for layer in getattr(self.patch_embed, "convs", ()):
            if isinstance(layer, nn.Conv2d):
                # pycls leaves the kernel's 9 places out
                nn.init.normal_(layer.weight, std=sqrt(2 / layer.out_channels))
        last = self.patch_embed.proj.weight
        nn.init.normal_(last, std=sqrt(1 / last[0].numel()))
        assert self.cls_token is not None, "this ViT has one"
        nn.init.zeros_(self.cls_token)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return no names: only gains of norms and biases are exempt (section 5.4)."""
        return set()


def _register(stem: str, name: str, size: Size) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        embed: dict[str, Callable[..., nn.Module]] = {}
        if stem == "c":
            embed["embed_layer"] = partial(ConvStem, layers=LARGE) if name in ("18gf", "36gf") else ConvStem
        own = {
            "embed_dim": size.width,
            "mlp_ratio": size.mlp_ratio,
            "num_heads": size.heads,
            "depth": size.blocks - (stem == "c"),
        }
        net: nn.Module = build_model_with_cfg(
            EarlyConvViT,
            create.__name__,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **(own | embed | options),
        )
        return net

    create.__name__ = f"vit{stem}_{name}"
    register_model(create)


for _stem in "pc":
    for _name, _size in SIZES.items():
        _register(_stem, _name, _size)
