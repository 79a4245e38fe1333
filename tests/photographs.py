"""Photographs for the tests: crops of the two that scikit-learn brings, of 640 x 427 pixels."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images


@cache
def photographs(count: int, size: int = 224) -> list[NDArray[np.uint8]]:
    """Return so many crops of them, uint8 [size, size, 3], some of which overlap."""
    rng = np.random.default_rng(0)
    wholes = load_sample_images().images
    crops = []
    for number in range(count):
        whole = wholes[number % len(wholes)]
        top, left = (rng.integers(side - size + 1) for side in whole.shape[:2])
        crops.append(np.ascontiguousarray(whole[top : top + size, left : left + size]))
    return crops
