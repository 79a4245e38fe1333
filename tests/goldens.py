"""What makes a view, held by numbers: `python -m tests.goldens` writes them anew, where the version of views allows it.

`tests/pipeline/data/test_version.py` compares what is computed now with `goldens.json`. Pixels and integers are held by
a hash. Numbers of floating point are held as they are and compared with a tolerance, for their last bit may differ
between processors.
"""

import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Augment, Mix, Recipe
from pipeline.data.augment import augment, center
from pipeline.data.batch import TrainingBatches
from pipeline.data.boxes import Boxes, erase_box
from pipeline.data.device import erase, model_input, on_device
from pipeline.data.mix import draw_mixing, mix_labels
from pipeline.data.order import order_of
from pipeline.data.version import LIBRARIES, VIEWS
from pipeline.device_randomness import uniforms
from pipeline.model.build import build_model
from pipeline.randomness import Purpose, generator, view_keys
from shards.decode import decode
from shards.index import Index
from shards.members import Shard, row_dtype
from tests.tiny import HERE

FILE: Final = Path(__file__).with_name("goldens.json")
TOLERANCE: Final = 1e-5
COMMAND: Final = "python -m tests.goldens"

Golden = str | list[float]

SEED: Final = 11
SIZE: Final = 32
VIEWS_OF_A_POLICY: Final = 150  # so that every operation of a policy is met
SHARDS: Final = (20, 30, 20)


def photograph() -> NDArray[np.uint8]:
    """Return 80 x 60 pixels: patches of colour under a gradient, from integers that no library rounds."""
    coarse = np.frombuffer(np.random.Philox(key=1).random_raw(72).tobytes(), np.uint8).reshape(12, 16, 3)
    fine = np.kron(coarse, np.ones((5, 5, 1), np.uint8)).astype(np.int64)
    return ((3 * fine + np.arange(80).reshape(1, 80, 1)) // 4).astype(np.uint8)


PHOTO: Final = photograph()


def sha256(*arrays: NDArray[Any]) -> str:
    """Return the hash of arrays: of their types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def views(settings: Augment, count: int) -> str:
    """Return the hash of views of the photograph."""
    rngs = [generator(SEED, Purpose.AUGMENT, epoch=2, sample=sample, copy=sample % 3) for sample in range(count)]
    return sha256(*(augment(PHOTO, SIZE, settings, rng) for rng in rngs))


def mixing(settings: Mix) -> list[float]:
    """Return a mixing of two copies of four images: lambdas, boxes and partners."""
    copies = np.arange(8) % 2
    drawn = draw_mixing(settings, seed=SEED, step=7, virtual_rank=2, copies=copies, size=SIZE)
    return [*_rounded(drawn.lam), *drawn.boxes.flatten().tolist(), *drawn.partner.tolist()]


def erased() -> list[float]:
    """Return the box of a view, and the first numbers of its noise in each channel."""
    sample = next(i for i in range(100) if erase_box(SIZE, 0.5, _erase_rng(i))[2])
    top, left, height, width = box = erase_box(SIZE, 0.5, _erase_rng(sample))
    keys = torch.from_numpy(view_keys(SEED, 2, np.array([sample]), np.array([1])))
    boxes = Boxes.counted(torch.tensor([box]), np.array([box]))
    (noise,) = erase(torch.zeros(1, 3, SIZE, SIZE), boxes, keys)
    return [*box, *_rounded(noise[:, top, left : left + min(width, 4)]), *_rounded(noise[:, top + height - 1, left])]


def _erase_rng(sample: int) -> np.random.Generator:
    return generator(SEED, Purpose.ERASE, epoch=2, sample=sample, copy=1)


def stochastic_depth() -> list[float]:
    """Return the uniforms of one view's key."""
    keys = torch.from_numpy(view_keys(SEED, 2, np.array([5]), np.array([1])))
    return _rounded(uniforms(keys, Purpose.DROP_PATH, 12))


def order(recipe: Recipe, shards: tuple[int, ...] = SHARDS) -> str:
    """Return the hash of what all virtual ranks see in the first steps."""
    its = order_of(replace(recipe, seed=SEED), shards)
    seen = [its.views(step, rank) for step in range(12) for rank in range(recipe.virtual_ranks)]
    return sha256(*(array for of_rank in seen for array in (of_rank.samples, of_rank.copies)))


class Photographs:
    """A reader in whose every sample lies the photograph, turned by as many columns as its number."""

    def read(self, sample: int) -> bytes:
        """Return a PNG, whose pixels come back as they are."""
        return encoded(Image.fromarray(np.roll(PHOTO, sample, axis=1)), "PNG")


def batches() -> TrainingBatches:
    """Return the small recipe's batches, of photographs."""
    rows = np.zeros(sum(SHARDS), row_dtype(8))
    rows["label"] = np.arange(len(rows)) % HERE.data.classes
    starts = np.cumsum((0, *SHARDS))
    made = TrainingBatches(
        replace(HERE, seed=SEED), Index(Path(), tuple(Shard("", size, 0) for size in SHARDS), rows, starts, "")
    )
    made.reader = Photographs()  # type: ignore[assignment]
    return made


def a_batch() -> str:
    """Return the hash of all integers of a batch."""
    batch = batches()[6, 1]
    records = batch.records.host
    assert records["erased"].any()
    return sha256(*(records[name] for name in ("pixels", "label", "key", "depth_key", "erased")))


def as_the_model_sees_it() -> list[float]:
    """Return pixels of a batch that is normalised, erased and mixed, sums of its images, and its labels."""
    made = batches()
    views = on_device(made[6, 1], torch.device("cpu"))
    assert views.mixing
    images = model_input(views, HERE.model)
    targets = mix_labels(views.labels, views.mixing, classes=HERE.data.classes, smoothing=HERE.mix.smoothing)
    means = images.double().mean(dim=(1, 2, 3))
    return [*_rounded(images[:, :, 3, 5]), *_rounded(means), *_rounded(targets)]


def initial_weights() -> list[float]:
    """Return the sum of each tensor of a small model at its start, weighted by place."""
    tensors = build_model(HERE.model, HERE.data.classes, SEED).state_dict()
    places = [torch.linspace(0.5, 1, max(value.numel(), 2), dtype=torch.float64) for value in tensors.values()]
    return [
        round(float((value.double().flatten() * place[: value.numel()]).sum()), 6)
        for value, place in zip(tensors.values(), places, strict=True)
    ]


def encoded(image: Image.Image, format: str) -> bytes:
    """Return an image as bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def decoded() -> str:
    """Return the hash of what is decoded of a photograph in colour and in grey."""
    image = Image.fromarray(PHOTO)
    return sha256(decode(encoded(image, "JPEG"), ""), decode(encoded(image.convert("L"), "PNG"), ""))


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.flatten().tolist()]


PLAIN: Final = Augment(crop="whole", flip=0.0)
GOLDENS: Final[Mapping[str, Callable[[], Golden]]] = {
    "decoded images": decoded,
    "policy rand": lambda: views(replace(PLAIN, rand_ops=2), VIEWS_OF_A_POLICY),
    "policy rand_tf": lambda: views(replace(PLAIN, policy="rand_tf", rand_ops=2), VIEWS_OF_A_POLICY),
    "policy auto": lambda: views(replace(PLAIN, policy="auto"), VIEWS_OF_A_POLICY),
    "policy auto_v0": lambda: views(replace(PLAIN, policy="auto_v0"), VIEWS_OF_A_POLICY),
    "policy three": lambda: views(replace(PLAIN, policy="three"), 12),
    "crop resized": lambda: views(replace(PLAIN, crop="resized"), 12),
    "crop bilinear": lambda: views(replace(PLAIN, crop="resized", interpolation="bilinear"), 12),
    "crop padded": lambda: views(replace(PLAIN, crop="padded"), 12),
    "crop whole, flip": lambda: views(replace(PLAIN, flip=0.5), 12),
    "jitter": lambda: views(replace(PLAIN, jitter=0.4), 6),
    "rotate": lambda: views(replace(PLAIN, rotate=30.0), 6),
    "shear": lambda: views(replace(PLAIN, shear=20.0), 6),
    "all augmentations": lambda: views(Augment(crop="resized", rand_ops=2, jitter=0.3, rotate=10.0, shear=10.0), 12),
    "evaluation view": lambda: sha256(center(PHOTO, SIZE, 0.875)),
    "erase box and noise": erased,
    "mixup": lambda: mixing(Mix(mixup_alpha=0.8)),
    "cutmix": lambda: mixing(Mix(cutmix_alpha=1.0)),
    "stochastic depth": stochastic_depth,
    "order": lambda: order(HERE),
    "order of all images": lambda: order(replace(HERE, data=replace(HERE.data, epoch="images"))),
    "order of a subset": lambda: order(replace(HERE, data=replace(HERE.data, subset=50))),
    "order of growing windows": lambda: order(
        replace(HERE, batch=600, data=replace(HERE.data, window=700, repeats=1)), (4000, 5000)
    ),
    "batch": a_batch,
    "batch as the model sees it": as_the_model_sees_it,
    "initial weights": initial_weights,
}


def computed(names: Sequence[str] = tuple(GOLDENS)) -> dict[str, Golden]:
    """Return the goldens of this installation."""
    return {name: GOLDENS[name]() for name in names}


def libraries() -> dict[str, str]:
    """Return the versions that the goldens are made with; torch's enters the initial weights alone."""
    return {library: version(library) for library in (*LIBRARIES, "torch")}


def moved(held: Mapping[str, Golden], found: Mapping[str, Golden]) -> list[str]:
    """Return the names of goldens that are not as they were."""
    return [name for name, value in found.items() if name in held and not _equal(held[name], value)]


def _equal(held: Golden, found: Golden) -> bool:
    if isinstance(held, str) or isinstance(found, str):
        return held == found
    return len(held) == len(found) and found == pytest.approx(held, abs=TOLERANCE)


def complaint(held: Mapping[str, Any], found: Mapping[str, Golden], views: int = VIEWS) -> str:
    """Return what is wrong with goldens that are held, and what to do; empty if nothing is."""
    if held["views"] != views:
        return (
            f"{FILE.name} holds the goldens of VIEWS = {held['views']}, and pipeline/data/version.py says {views}. "
            f"Run `{COMMAND}`, and look at what it changes."
        )
    changed = moved(held["goldens"], found)
    if changed:
        now = libraries()
        others = [library for library in LIBRARIES if held["libraries"][library] != now[library]]
        names = ", ".join(changed)
        if others:  # which the version of views names, so that it has changed by itself
            new = ", ".join(f"{library} {now[library]} in place of {held['libraries'][library]}" for library in others)
            return f"the bytes of {names} changed, with {new}. Run `{COMMAND}`, and look at what it changes."
        return (
            f"the bytes of {names} changed. If that is meant, raise VIEWS in pipeline/data/version.py by one and run "
            f"`{COMMAND}`; stored teacher outputs and checkpoints of before are refused from then on. If it is not "
            f"meant, runs that go on would see other views than they began with: mend it."
        )
    if missing := [name for name in found if name not in held["goldens"]]:
        return f"{FILE.name} does not hold {', '.join(missing)} yet. Run `{COMMAND}`."
    return ""


def read() -> dict[str, Any]:
    """Return what is held."""
    held: dict[str, Any] = json.loads(FILE.read_text())
    return held


def main() -> None:
    """Write the file; refuse to overwrite a golden that moved where the version of views did not."""
    found = computed()
    if FILE.exists() and (held := read())["views"] == VIEWS:
        wrong = complaint(held, found)
        if "raise VIEWS" in wrong:
            sys.exit(f"{FILE.name} is left as it is: {wrong}")
    FILE.write_text(json.dumps({"views": VIEWS, "libraries": libraries(), "goldens": found}, indent=1) + "\n")
    print(f"{FILE}: {len(found)} goldens of VIEWS = {VIEWS}.")


if __name__ == "__main__":
    main()
