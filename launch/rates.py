"""What is published of GPUs: memory, and how many images a second one trains.

A model that nobody published a figure for is scaled by FLOPs from the nearest one, and that is said.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

GpuName = Literal["v100", "a100", "h100"]
SAME: Final = 0.05  # share by which the FLOPs of two writings of one model differ


class Gpu(NamedTuple):
    """A GPU of the kind that is most often rented."""

    name: str
    memory: int  # bytes


GPUS: Final[Mapping[GpuName, Gpu]] = {
    "v100": Gpu("V100 SXM2 32 GB", 32 * 10**9),
    "a100": Gpu("A100 SXM 80 GB", 80 * 10**9),
    "h100": Gpu("H100 SXM 80 GB", 80 * 10**9),
}


class Rate(NamedTuple):
    """A published training rate at 224 px."""

    gpu: GpuName
    model: str
    flops: float  # of an image's forward pass: two for each multiply-add that the source counts
    images_per_second: float  # of one GPU
    source: str


# of fp16, it must be: 232 images/s of ViT-B are 24 TFLOP/s, and a V100 has 15.7 in fp32, in which it trains here
XIAO: Final = "Xiao et al., arXiv 2106.14881, Table 1, which must be of fp16, minutes an epoch on 8 V100"
PLSC: Final = "PaddlePaddle/PLSC, ViT benchmark: 3,583 images/s on 8 A100"
VIT5: Final = (
    "https://nvidia-bionemo.github.io/nvSubquadratic/benchmarks.html, 'torch.compile (default)' after optimizations"
)

RATES: Final = (
    # 1,281,167 images / (60 x minutes x 8)
    Rate("v100", "ViT_P-1GF", 2.2e9, 1027, f"{XIAO}: 2.6"),
    Rate("v100", "ViT_P-4GF", 7.8e9, 702, f"{XIAO}: 3.8"),
    Rate("v100", "ViT_P-18GF (ViT-B/16)", 35.0e9, 232, f"{XIAO}: 11.5"),
    Rate("v100", "ViT_P-36GF", 71.8e9, 142, f"{XIAO}: 18.8"),
    Rate("a100", "ViT-B/16", 35.0e9, 3583 / 8, PLSC),
    # 989 TFLOP/s / 34,800 images/s / 3 is what the page counts for a forward pass; model alone, on one batch
    Rate("h100", "ViT-5-Small", 9.47e9, 7716, VIT5),
)


class Estimate(NamedTuple):
    """Images/s of one GPU, and where they come from."""

    images_per_second: float
    source: str


def published(gpu: GpuName, flops: float) -> Estimate:
    """Return what one GPU trains of a model whose forward pass of an image is so many FLOPs."""
    nearest = min((rate for rate in RATES if rate.gpu == gpu), key=lambda rate: abs(1 - _ratio(rate.flops, flops)))
    if abs(1 - nearest.flops / flops) <= SAME:
        return Estimate(nearest.images_per_second, f"published of {nearest.model}: {nearest.source}")
    scaled = nearest.images_per_second * nearest.flops / flops
    return Estimate(scaled, f"scaled from {nearest.model} by FLOPs: {nearest.source}")


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
