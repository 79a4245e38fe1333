"""The learning rate: a pure function of the step, with nothing to save and nothing to step at the wrong time."""

import math


def cosine(step: float, *, peak: float, floor: float, warmup: float, total: int, start: float) -> float:
    """Return the learning rate of a step: linear from `start` to `peak` over `warmup` steps, then half a cosine.

    The rate would reach `floor` at step `total`, one after the last. Source: deit/main.py defaults (warm-up from
    1e-6, floor 1e-5), stepped by step instead of by epoch.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
