"""Our views of photographs beside timm's: one distribution, and each operation's pixels within bounds of timm's.

    python tests/bench/bench_views.py [--data SOURCE] [--views VIEWS]

SOURCE is what `vitrail shards build` takes; without one, crops of scikit-learn's two photographs. Views are DeiT's, of
224 px, before they are normalised. Both arms show every photograph equally often, and differ in their draws. Were there
no other difference, the arms could be exchanged for any photograph: exchanges by chance give the error of each figure,
and its bound is five of them. The bounds of operations' pixels are `BOUNDS`. Ends with 1 beyond one.
"""

import argparse
import io
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.config import Augment
from pipeline.data import augment, policy
from pipeline.data.policy import OP_NAMES, OPS, TIMM, Op
from pipeline.randomness import Purpose, generator
from shards.decode import decode
from shards.sources import open_source
from tests.photographs import photographs

SIZE: Final = 224
DEIT: Final = "rand-m9-mstd0.5-inc1"
SETTINGS: Final = Augment(rand_ops=2)
EXCHANGES: Final = 200  # of arms, to learn the errors
ERRORS: Final = 5  # that a bound is wide
OPERATED_ON: Final = 100  # photographs for the pixels of operations

AREA, SHAPE, MIRROR = "crop: share of the area", "crop: log of its longer side over the other", "mirror"
NOTED: Final = (*OP_NAMES, MIRROR, AREA, SHAPE)
COLOURS: Final = ("red", "green", "blue")
PLAIN: Final = (
    *(f"{colour}, {what}" for what in ("mean", "standard deviation") for colour in COLOURS),
    *(f"views with {count}" for count in ("no operation", "one operation", "two operations")),
)


class Bound(NamedTuple):
    """How far the pixels of an operation may be from timm's: grey levels."""

    mean: float
    percentile_99: float


EXACT = Bound(0, 0)
# measured on 100 photographs of ImageNet and on crops of two others (LOG.md, 2026-11-29): means of 0.00 to 1.09
BOUNDS: Final[Mapping[str, Bound]] = {
    "AutoContrast": EXACT,
    "Equalize": EXACT,
    "Invert": EXACT,
    "PosterizeIncreasing": EXACT,
    "PosterizeOriginal": EXACT,
    "Posterize": EXACT,
    "SolarizeIncreasing": EXACT,
    "Solarize": EXACT,
    "SolarizeAdd": EXACT,
    "BrightnessIncreasing": EXACT,
    "Brightness": EXACT,
    # the mean grey, rounded from greys of 14 bits where Pillow has 16, may be the next one
    "ContrastIncreasing": Bound(0.1, 1),
    "Contrast": Bound(0.1, 1),
    # Pillow rounds the greys, and the smoothed image, before it blends with them
    "ColorIncreasing": Bound(0.2, 1),
    "Color": Bound(0.2, 1),
    "SharpnessIncreasing": Bound(0.3, 1),
    "Sharpness": Bound(0.3, 1),
    # a whole pixel less than zero where Pillow cuts off, at the border of the image
    "TranslateXRel": Bound(0.05, 1),
    "TranslateYRel": Bound(0.05, 1),
    # places are rounded to an eighth of a pixel, which is seen where the image is sharp
    "ShearX": Bound(0.5, 5),
    "ShearY": Bound(0.5, 5),
    # OpenCV's cubic has a = -0.75 in place of -1, places of 1/32 pixel, and rounds where Pillow cuts off; what is above
    # a level of 1 lies where the image is sharp, and at its border
    "Rotate": Bound(1.2, 12),
}


class Row(NamedTuple):
    """A figure of both arms; for a distance between them, of none."""

    what: str
    ours: float
    timms: float
    apart: float
    bound: float


# ---- the pixels of an operation --------------------------------------------------------------------------------------


def off(ours: NDArray[np.uint8], theirs: Any) -> NDArray[np.uint8]:
    """Return how far pixels are from each other."""
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    return abs(ours.astype(np.int16) - np.asarray(theirs)).astype(np.uint8)


def pixels_apart(
    name: str,
    images: Sequence[NDArray[np.uint8]],
    ops: Mapping[str, Op] = OPS,
    fill: tuple[int, ...] = TIMM.fill,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Bound:
    """Return how far an operation's pixels are from timm's: over its whole range, in both directions by turns."""
    found: list[NDArray[np.uint8]] = []
    for image, magnitude in zip(images, np.linspace(0, 10, len(images)), strict=True):
        sign = (1, -1)[len(found) % 2]
        theirs = auto_augment.AugmentOp(
            name, prob=1.0, magnitude=magnitude, hparams={"img_mean": fill, "interpolation": resample}
        )
        with patch.object(auto_augment, "_randomly_negate", lambda value, sign=sign: sign * value):
            found.append(off(ops[name](image, sign * magnitude / 10), theirs(Image.fromarray(image))).ravel())
    apart = np.concatenate(found)
    return Bound(float(apart.mean()), float(np.percentile(apart, 99)))


# ---- the distribution of views ---------------------------------------------------------------------------------------


class Notes:
    """What is done to a photograph: how often, and the sum of its levels."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()

    def add(self, name: str, level: float = 1.0) -> None:
        self.times[name] += 1
        self.levels[name] += abs(level)  # type: ignore[assignment]  # a Counter of floats

    def add_crop(self, height: int, width: int) -> None:
        self.add(AREA, height * width)
        self.add(SHAPE, float(np.log(width / height)))

    def before(self, work: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        """Return a function that notes its arguments first."""

        def noted(*arguments: Any, **named: Any) -> Any:
            note(*arguments)
            return work(*arguments, **named)

        return noted


Arm = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]  # photograph, its number, copy: a view [S, S, 3]


@contextmanager
def our_arm(notes: Notes) -> Iterator[Arm]:
    """Yield what makes our views."""
    noted = {
        name: notes.before(op, lambda _, level, name=name: notes.add(name, level)) for name, op in policy.OPS.items()
    }
    with (
        patch.object(policy, "OPS", noted),
        patch.object(augment, "mirror", notes.before(augment.mirror, lambda _: notes.add(MIRROR))),
        patch.object(augment, "resize", notes.before(augment.resize, lambda part, *_: notes.add_crop(*part.shape[:2]))),
    ):
        yield lambda photo, number, copy: augment.augment(
            photo, SIZE, SETTINGS, generator(0, Purpose.AUGMENT, sample=number, copy=copy)
        )


@contextmanager
def timms_arm(notes: Notes, named: str) -> Iterator[Arm]:
    """Yield what makes timm's views."""
    transform = create_transform(
        SIZE, is_training=True, auto_augment=named, interpolation="bicubic", re_prob=0, use_prefetcher=True
    )
    (drawn,) = (step for step in transform.transforms if isinstance(step, auto_augment.RandAugment))
    for op in drawn.ops:
        strength = op.level_fn or (lambda *_: ())
        op.level_fn = notes.before(strength, lambda magnitude, _, name=op.name: notes.add(name, magnitude / 10))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # timm draws from it
    torch.manual_seed(0)
    with (
        patch.object(functional, "hflip", notes.before(functional.hflip, lambda _: notes.add(MIRROR))),
        patch.object(
            functional,
            "resized_crop",
            notes.before(
                functional.resized_crop, lambda _, top, left, height, width, *__: notes.add_crop(height, width)
            ),
        ),
    ):
        yield lambda photo, number, copy: np.asarray(transform(Image.fromarray(photo))).transpose(1, 2, 0)


def counted(notes: Notes, arm: Arm, photo: NDArray[np.uint8], number: int, copies: int) -> NDArray[np.float64]:
    """Return what `figures` sums up, of so many views of a photograph."""
    notes.times.clear()
    notes.levels.clear()
    values, done = np.zeros((3, 256)), np.zeros(3)
    for copy in range(copies):
        before = sum(notes.times[name] for name in OP_NAMES)
        view = arm(photo, number, copy)
        assert view.shape == (SIZE, SIZE, 3)
        values += [np.bincount(channel, minlength=256) for channel in view.reshape(-1, 3).T]
        done[sum(notes.times[name] for name in OP_NAMES) - before] += 1
    notes.levels[AREA] /= photo.shape[0] * photo.shape[1]
    noted = [[of[name] for name in NOTED] for of in (notes.times, notes.levels)]
    return np.concatenate([values.ravel(), done, *noted])


def figures(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the figures of an arm, and its histograms [3, 256], of its counts [photographs, ...]."""
    values, done, times, levels = np.split(counts.sum(0), np.cumsum([3 * 256, 3, len(NOTED)]))
    histograms = values.reshape(3, 256) / values.sum() * 3
    means = histograms @ np.arange(256)
    deviations = np.sqrt(histograms @ np.arange(256) ** 2 - means**2)
    views = done.sum()
    return np.concatenate([means, deviations, done / views, times / views, levels / times]), histograms


def differences(ours: NDArray[np.float64], timms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far the figures of two arms are apart, and behind them the total variation between histograms."""
    (one, histograms), (other, others) = figures(ours), figures(timms)
    return np.concatenate([one - other, abs(histograms - others).sum(1) / 2])


def compared(photos: Sequence[bytes], copies: int, named: str = DEIT) -> list[Row]:
    """Return the figures of both arms over so many views of each photograph; `named` is timm's policy."""
    counts: list[list[NDArray[np.float64]]] = [[], []]
    notes = Notes(), Notes()
    with our_arm(notes[0]) as ours, timms_arm(notes[1], named) as timms:
        for number, content in enumerate(photos):
            decoded = decode(content, str(number)), np.array(Image.open(io.BytesIO(content)).convert("RGB"))
            for arm, photo, noted, of_arm in zip((ours, timms), decoded, notes, counts, strict=True):
                of_arm.append(counted(noted, arm, photo, number, copies))
    arms = [np.array(of_arm) for of_arm in counts]
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(EXCHANGES):
        stay = rng.random((len(photos), 1)) < 0.5
        chance.append(differences(np.where(stay, *arms), np.where(stay, *reversed(arms))))
    bounds = np.mean(chance, 0) + ERRORS * np.std(chance, 0)
    names = (
        *PLAIN,
        *(f"{name}: times a view" for name in NOTED),
        *(f"{name}: level" for name in NOTED),
        *(f"{colour}, total variation of histograms" for colour in COLOURS),
    )
    values = [[*figures(arm)[0], *[np.nan] * 3] for arm in arms]
    return [Row(*row) for row in zip(names, *values, abs(differences(*arms)), bounds, strict=True)]


def photographs_of(source: str) -> list[bytes]:
    """Return encoded photographs."""
    if not source:
        return [encoded(photo) for photo in photographs(100, 360)]
    found = open_source(source)
    read = found.images.read
    return [read(place)[0] for places in found.places.values() for place in places]


def encoded(photo: NDArray[np.uint8]) -> bytes:
    """Return a JPEG."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=95)
    return file.getvalue()


def main() -> int:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="")
    parser.add_argument("--views", type=int, default=20_000)
    arguments = parser.parse_args()
    photos = photographs_of(arguments.data)
    copies = -(-arguments.views // len(photos))
    rows = {row.what: row for row in compared(photos, copies)}
    wrong = [row.what for row in rows.values() if not row.apart <= row.bound]
    print(f"| {copies * len(photos):,} views of {len(photos)} photographs | ours | timm's | apart | bound |")
    print("|---|---|---|---|---|")
    for row in rows.values():
        if row.what in PLAIN or "variation" in row.what:
            arms = ("", "") if np.isnan(row.ours) else (f"{row.ours:.3f}", f"{row.timms:.3f}")
            print(f"| {row.what} | {arms[0]} | {arms[1]} | {row.apart:.4f} | {row.bound:.4f} |")
    images = [augment.center(decode(content, "a"), SIZE, 0.875).copy() for content in photos[:OPERATED_ON]]
    print(
        "\n| operation | times a view: ours, timm's, bound | level: the same | pixels: mean, 99th percentile | bounds |"
    )
    print("|---|---|---|---|---|")
    for name in NOTED:
        times, level = rows[f"{name}: times a view"], rows[f"{name}: level"]
        cells = [name, *(f"{row.ours:.4f}, {row.timms:.4f}, {row.bound:.4f}" for row in (times, level)), "", ""]
        if name in OPS:
            apart, bound = pixels_apart(name, images), BOUNDS[name]
            cells[3:] = f"{apart.mean:.3f}, {apart.percentile_99:.0f}", f"{bound.mean}, {bound.percentile_99}"
            if apart.mean > bound.mean or apart.percentile_99 > bound.percentile_99:
                wrong.append(f"pixels of {name}")
        print(f"| {' | '.join(cells)} |")
    for what in wrong:
        print(f"beyond its bound: {what}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
