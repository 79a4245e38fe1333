"""What cached outputs of a frozen prefix would save of partial fine-tuning: images/s of a step, in turns: medians.

    python tests/bench/bench_prefix.py [BATCH [THREADS]]

A ViT-Ti at 224 px in fp32, with images and outputs in memory: reading a cache is not in it, and neither is decoding. A
cache holds one view of an image: no other crop in another epoch.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.config import Finetune, Model
from pipeline.model.build import build_model
from pipeline.model.finetune import freeze, parameters_by_part

ROUNDS: Final = 5
STRATEGIES: Final = ("linear", "partial-1", "partial-2", "partial-6")
SIZE: Final = 224


def main() -> None:
    batch, threads = (int(word) for word in (*sys.argv[1:], *("32", "1")[len(sys.argv) - 1 :]))
    torch.set_num_threads(threads)
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for strategy in STRATEGIES:
        net: Any = build_model(Model(name="vit_tiny_patch16_224", img_size=SIZE), 10, seed=0)
        freeze(net, Finetune(strategy=strategy))
        frozen = sum(not any(p.requires_grad for p in block.parameters()) for block in net.blocks)
        with torch.inference_mode():
            outputs = prefix(net, images, frozen)
        arms = {
            "whole": step(net, lambda net=net: net(images)),
            "suffix": step(net, lambda net=net, outputs=outputs, frozen=frozen: suffix(net, outputs.clone(), frozen)),
        }
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(ROUNDS + 1):
            for arm, take in arms.items():
                started = time.perf_counter()
                take()
                seconds[arm].append(time.perf_counter() - started)
        rates = {arm: batch / statistics.median(of_arm[1:]) for arm, of_arm in seconds.items()}
        print(
            json.dumps(
                {
                    "what": f"{strategy}: {frozen} of {len(net.blocks)} blocks are frozen",
                    "batch": batch,
                    "threads": threads,
                    "trained_parameters": sum(some for some, _ in parameters_by_part(net).values()),
                    "images_per_second": {arm: round(rate, 1) for arm, rate in rates.items()},
                    "times_as_fast": round(rates["suffix"] / rates["whole"], 2),
                    "kB_an_image_in_fp16": round(outputs[0].numel() * 2 / 1e3, 1),
                    "n": ROUNDS,
                    "load": round(os.getloadavg()[0], 1),
                    "machine": platform.processor() or platform.machine(),
                }
            )
        )


def prefix(net: Any, images: Tensor, frozen: int) -> Tensor:
    """Return what a ViT's first blocks make of images: tokens [B, N, D]."""
    taken: list[Tensor] = []
    after = net.norm if frozen == len(net.blocks) else net.blocks[frozen]
    hook = after.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    net(images)
    hook.remove()
    return taken[0]


def suffix(net: Any, tokens: Tensor, frozen: int) -> Tensor:
    """Return the logits of a ViT whose first blocks gave these tokens."""
    logits: Tensor = net.forward_head(net.norm(net.blocks[frozen:](tokens)))
    return logits


def step(net: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Return what takes a training step of a network, whose forward pass is given."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])

    def take() -> None:
        forward().logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return take


if __name__ == "__main__":
    main()
