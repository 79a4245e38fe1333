"""A small made-up data set, for rehearsals and tests: pictures of noise in a colour of their class."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards.dataset import Dataset, read_dataset, write_dataset
from shards.files import atomic_write
from shards.index import write_index
from shards.pack import Sample, pack


def make_dataset(
    folder: Path, *, classes: int, size: int, samples: dict[str, int], samples_per_shard: int = 16
) -> Dataset:
    """Write JPEGs of `size` pixels, `samples[split]` of them in each split, and return the data set."""
    indexes = {}
    for number, (split, count) in enumerate(samples.items()):
        rng = np.random.Generator(np.random.Philox(key=number))
        (folder / split).mkdir(parents=True)
        parts = []
        for first in range(0, count, samples_per_shard):
            tar = folder / split / f"{first // samples_per_shard:06d}.tar"
            with atomic_write(tar) as file:
                contents = pack(file, _samples(rng, range(first, min(first + samples_per_shard, count)), classes, size))
            parts.append((contents.shard(tar.name), contents.rows))
        indexes[split] = write_index(folder / split, parts)
    write_dataset(folder, [str(label) for label in range(classes)], indexes)
    return read_dataset(folder)


def _samples(rng: np.random.Generator, numbers: Iterable[int], classes: int, size: int) -> Iterator[Sample]:
    for number in numbers:
        label = number % classes
        colour = np.array([label * 67 % 256, label * 131 % 256, label * 29 % 256])
        pixels = np.clip(colour + rng.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
        yield Sample(f"{number:06d}", label, buffer.getvalue(), "jpg")
