"""Loader into nothing: our batches of deit_small against webdataset with timm's transforms, on the same tars.

One JSON line: views a second of both, medians of n rounds taken in turn in this run, and their ratio.
"""

import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset
from timm.data import create_transform
from torch.utils.data import DataLoader

from pipeline.batch import Places, TrainingBatches, load
from recipes.deit_small import RECIPE
from shards.synthetic import make_dataset

ROUNDS = 5
BATCHES = 3  # of 64 views, in each round, after one that is not counted


def ours(folder: Path, tars: list[str]) -> Iterator[Any]:
    from dataclasses import replace

    from shards.dataset import read_dataset

    alone = replace(RECIPE, batch=64, virtual_ranks=1)
    batches = TrainingBatches(alone, read_dataset(folder).splits["train"])
    return iter(load(batches, Places(range(1000), range(1)), workers=1, pin_memory=False))


def theirs(folder: Path, tars: list[str]) -> Iterator[Any]:
    transform = create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
                                 color_jitter=0.3)  # fmt: skip
    samples = webdataset.WebDataset(tars, shardshuffle=False).repeat().shuffle(200).decode("pil")
    samples = samples.to_tuple("jpg", "cls").map_tuple(transform, int)
    return iter(DataLoader(samples, batch_size=64, num_workers=1))


def views_per_second(make: Callable[[Path, list[str]], Iterator[Any]], folder: Path, tars: list[str]) -> float:
    batches = make(folder, tars)
    next(batches)
    started = time.perf_counter()
    for _ in itertools.islice(batches, BATCHES):
        pass
    return 64 * BATCHES / (time.perf_counter() - started)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        make_dataset(folder, classes=1000, size=320, samples={"train": 256}, samples_per_shard=64)
        tars = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
        speeds: dict[str, list[float]] = {"vitrail": [], "webdataset+timm": []}
        for _ in range(ROUNDS):
            for name, make in (("vitrail", ours), ("webdataset+timm", theirs)):
                speeds[name].append(views_per_second(make, folder, tars))
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    line = {
        "what": "loader, deit_small, 1 worker", "unit": "views/s", "n": ROUNDS,
        **{name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
           for name, values in speeds.items()},
        "ratio": statistics.median(ratios), "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
