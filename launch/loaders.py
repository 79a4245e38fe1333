"""Loaders of other libraries, each as its users write it, on the tars of a data set: what ours is measured against.

Each makes batches of views by a random resized crop, a flip and RandAugment, in worker processes. Views are uint8, and
normalising and erasing happen later, on the device, as with ours; but for the first loader, whose users have DeiT's
code. Labels are left out: they cost nothing, and tars have them in many forms. Images are decoded here, not by
webdataset, whose own decoders unpickle what a data set brings.

Shapes: B images, S side of the image.
"""

import io
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from webdataset.compat import WebDataset

from pipeline.config import Recipe
from pipeline.data.loader import LOOK_AHEAD, PATIENCE, watched
from shards.decode import IMAGE_EXTENSIONS
from shards.errors import Problem

Batches = Generator[Any, None, None]
SHUFFLED: Final = 200  # images that a stream holds to shuffle them
MAGNITUDES: Final = 11  # steps of RandAugment's strength, 0 to 10, as timm and ours count them


class Library(NamedTuple):
    """One that `--against` names."""

    module: str
    remedy: str  # where it is not installed


class Loading(NamedTuple):
    """A loader of a library: how it is started on tars with so many workers, and what to know of it."""

    library: str
    start: Callable[[Recipe, list[str], int], Batches]
    note: str


def rand_augment_of_timm(recipe: Recipe) -> str | None:
    """Return timm's word for a recipe's RandAugment; None where there is none, or one that timm has not."""
    augment = recipe.augment
    if not augment.rand_ops or augment.policy != "rand":
        return None
    return f"rand-n{augment.rand_ops}-m{augment.rand_magnitude:g}-mstd{augment.rand_std:g}-inc1"


def streamed(
    tars: list[str], transform: Callable[[bytes], Any], recipe: Recipe, workers: int, collate: Callable[..., Any] | None
) -> Batches:
    """Start torch's loader over webdataset's stream of the tars' images."""
    # each worker draws tars of its own: there may be fewer tars than workers
    stream: Any = WebDataset(tars, resampled=True, shardshuffle=False)
    samples = stream.shuffle(SHUFFLED).to_tuple(";".join(IMAGE_EXTENSIONS)).map_tuple(transform)
    loader = DataLoader(
        samples, batch_size=recipe.batch, num_workers=workers, prefetch_factor=LOOK_AHEAD, collate_fn=collate
    )
    return watched(iter(loader), PATIENCE)


def webdataset_and_timm(recipe: Recipe, tars: list[str], workers: int, *, tensors: bool) -> Batches:
    """Start timm's transforms: to normalised and erased tensors, as DeiT's main.py has them, or to uint8.

    uint8 is what timm's own loader makes, whose device normalises and erases, as ours does.
    """
    augment, model = recipe.augment, recipe.model
    assert model.mean, "a job's recipe has it"
    assert model.std, "and this"
    jitter: Any = augment.jitter or None
    views: Any = create_transform(
        model.img_size, is_training=True, use_prefetcher=not tensors, auto_augment=rand_augment_of_timm(recipe),
        interpolation=augment.interpolation, scale=augment.scale, ratio=augment.ratio, hflip=augment.flip,
        color_jitter=jitter, re_prob=augment.erase, re_mode="pixel", mean=model.mean, std=model.std,
    )  # fmt: skip

    def view(content: bytes) -> Any:
        return views(Image.open(io.BytesIO(content)).convert("RGB"))

    def collate(samples: list[tuple[Any]]) -> Any:
        return fast_collate([(image, 0) for (image,) in samples])

    return streamed(tars, view, recipe, workers, None if tensors else collate)


def webdataset_and_torchvision(recipe: Recipe, tars: list[str], workers: int) -> Batches:
    """Start torchvision's decoder and its transforms (v2) of uint8 tensors."""
    augment = recipe.augment
    magnitude = round(augment.rand_magnitude)
    policy = [v2.RandAugment(augment.rand_ops, magnitude, MAGNITUDES)] if rand_augment_of_timm(recipe) else []
    size, scale, ratio = recipe.model.img_size, augment.scale, augment.ratio
    interpolation = v2.InterpolationMode(augment.interpolation)
    crop = v2.RandomResizedCrop(size, scale, ratio, interpolation, antialias=True)
    views = v2.Compose([crop, v2.RandomHorizontalFlip(augment.flip), *policy])

    def view(content: bytes) -> Any:
        return views(decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB))

    return streamed(tars, view, recipe, workers, None)


def dali(recipe: Recipe, tars: list[str], workers: int, *, policy: bool) -> Batches:
    """Start DALI on the CPU: one process with so many threads, which reads the tars itself."""
    batches = DaliBatches(recipe, tars, workers, policy=policy and bool(rand_augment_of_timm(recipe)))
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=LOOK_AHEAD * workers)
    return watched(iter(loader), PATIENCE)


class DaliBatches(IterableDataset[Tensor]):
    """Batches of a pipeline of DALI, uint8 [B, S, S, 3]."""

    def __init__(self, recipe: Recipe, tars: list[str], threads: int, *, policy: bool) -> None:
        self.recipe, self.tars, self.threads, self.policy = recipe, tars, threads, policy

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches without end."""
        pipeline = self.pipeline()
        pipeline.build()
        while True:
            (views,) = pipeline.run()
            yield torch.from_numpy(np.array(views.as_tensor()))  # a copy: the pipeline writes there again

    def pipeline(self) -> Any:
        """Return the pipeline: read, decode a random crop, resize, flip, RandAugment."""
        dali: Any = import_module("nvidia.dali")  # optional, and it takes seconds
        rand_augment: Any = import_module("nvidia.dali.auto_aug.rand_augment")
        fn, types = dali.fn, dali.types
        augment, size, tars, policy = self.recipe.augment, self.recipe.model.img_size, self.tars, self.policy
        cubic = augment.interpolation == "bicubic"

        @dali.pipeline_def(enable_conditionals=True)
        def views() -> Any:
            content = fn.readers.webdataset(
                paths=tars, ext=[";".join(IMAGE_EXTENSIONS)], missing_component_behavior="skip", random_shuffle=True,
                initial_fill=SHUFFLED,
            )  # fmt: skip
            images = fn.decoders.image_random_crop(
                content, device="cpu", output_type=types.RGB, random_area=list(augment.scale),
                random_aspect_ratio=list(augment.ratio),
            )  # fmt: skip
            images = fn.resize(
                images, resize_x=size, resize_y=size, antialias=cubic,
                interp_type=types.INTERP_CUBIC if cubic else types.INTERP_LINEAR,
            )  # fmt: skip
            images = fn.flip(images, horizontal=fn.random.coin_flip(probability=augment.flip))
            if policy:
                images = rand_augment.rand_augment(
                    images, n=augment.rand_ops, m=round(augment.rand_magnitude), num_magnitude_bins=MAGNITUDES,
                    shape=(size, size),
                )  # fmt: skip
            return images

        return views(batch_size=self.recipe.batch, num_threads=self.threads, device_id=None)


LIBRARIES: Final[Mapping[str, Library]] = {
    "timm": Library("timm", ""),
    "torchvision": Library("torchvision", ""),
    "dali": Library("nvidia.dali", "it runs on CPUs too: pip install nvidia-dali-cuda120"),
}
WITHOUT: Final = "DALI, no RandAugment"
LOADERS: Final[Mapping[str, Loading]] = {
    "webdataset and timm": Loading(
        "timm", partial(webdataset_and_timm, tensors=True), "as DeiT's code: tensors, erased"
    ),
    "webdataset and timm, uint8": Loading(
        "timm", partial(webdataset_and_timm, tensors=False), "the device does the rest"
    ),
    "webdataset and torchvision v2": Loading(
        "torchvision", webdataset_and_torchvision, "uint8 tensors; does every operation, timm each by half"
    ),
    "DALI": Loading("dali", partial(dali, policy=True), "on the CPU; does every operation, timm each by half"),
    WITHOUT: Loading("dali", partial(dali, policy=False), "on the CPU; does less than the others"),
}


def installed(library: str) -> bool:
    """Return whether a library of `LIBRARIES` can be imported."""
    try:
        return find_spec(LIBRARIES[library].module) is not None
    except ModuleNotFoundError:  # what it would be a part of
        return False


def named(against: str) -> tuple[list[str], list[Problem]]:
    """Return the libraries that `--against` names, all that are installed for none, and what is wrong with them."""
    names = [name.strip() for name in against.split(",") if name.strip()]
    problems = []
    for name in names:
        if name not in LIBRARIES:
            problems.append(Problem("against", f"--against {name}: not one of {', '.join(LIBRARIES)}."))
        elif not installed(name):
            says = f"--against {name}: it is not installed here ({LIBRARIES[name].remedy}); or leave it out."
            problems.append(Problem("against", says))
    return names or [name for name in LIBRARIES if installed(name)], problems


def loaders_of(libraries: list[str], recipe: Recipe) -> dict[str, Loading]:
    """Return the loaders of libraries that can be measured on a recipe, in the order of `LOADERS`."""
    return {
        name: loading
        for name, loading in LOADERS.items()
        if loading.library in libraries and (name != WITHOUT or rand_augment_of_timm(recipe))
    }


def lacking(recipe: Recipe) -> str:
    """Return what of a recipe's views these loaders do not do, empty where they do it all."""
    augment = recipe.augment
    policy = "" if augment.policy == "rand" else f"no policy in the place of {augment.policy}"
    crop = "" if augment.crop == "resized" else f"a resized crop in the place of {augment.crop}"
    return ", ".join(filter(None, (crop, policy)))
