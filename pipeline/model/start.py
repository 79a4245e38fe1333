"""What the weights that a model starts from were trained with: its images' mean, deviation and interpolation.

Published weights say it by the model's name, a file by what lies beside it in its folder. Whatever else lies
there keeps no run from starting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, NotRequired, TypedDict

import timm

from pipeline.checkpoint import STATE
from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, Channels, Model
from pipeline.model import torchvision_nets
from pipeline.model.weights_file import file_of
from shards.errors import DamagedFile
from shards.files import read_json

INTERPOLATION: Final = "bicubic"  # ours, in training and in evaluation
PILLOW_INTERPOLATIONS: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class TimmInput(TypedDict):
    """What timm says of a model's images."""

    mean: NotRequired[Channels | None]
    std: NotRequired[Channels | None]
    interpolation: NotRequired[str | None]


class TimmConfig(TypedDict):
    """What is read of config.json: of a run of ours, or of a model of timm on a hub."""

    pretrained_cfg: NotRequired[TimmInput | None]


class Preprocessor(TypedDict):
    """What is read of preprocessor_config.json, of a model of transformers."""

    image_mean: NotRequired[Channels | None]
    image_std: NotRequired[Channels | None]
    resample: NotRequired[int | None]


SavedInput = TypedDict("SavedInput", {"model.mean": Channels, "model.std": Channels})


class Saved(TypedDict):
    """What is read of state.json, of a checkpoint of ours."""

    identity: SavedInput


class Trained(NamedTuple):
    """What weights were trained with; empty where nothing says it."""

    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str = ""
    passed_over: tuple[str, ...] = ()  # files beside them that say nothing of the kind, and why


def trained_with(model: Model) -> Trained:
    """Return what the weights that a model starts from were trained with."""
    if model.weights:
        return _beside(file_of(model.weights).parent)
    if model.pretrained and model.name in torchvision_nets.names():
        images = torchvision_nets.published(model.name)
        return Trained(images.mean, images.std, images.interpolation)
    config = timm.get_pretrained_cfg(model.name) if model.pretrained and timm.is_model(model.name) else None
    return Trained(_channels(config.mean), _channels(config.std), config.interpolation) if config else Trained()


def _beside(folder: Path) -> Trained:
    """Return what the first file says that says it; what has another form is somebody else's, and passed over."""
    passed_over = []
    for read in (_of_timm, _of_transformers, _of_checkpoint):
        try:
            found = read(folder)
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            passed_over.append(f"{error.path.name} beside them is passed over ({error.reason})")
            continue
        if found.mean or found.std:
            return found._replace(passed_over=tuple(passed_over))
    return Trained(passed_over=tuple(passed_over))


def _of_timm(folder: Path) -> Trained:
    images = read_json(folder / "config.json", TimmConfig).get("pretrained_cfg") or {}
    return Trained(_channels(images.get("mean")), _channels(images.get("std")), images.get("interpolation") or "")


def _of_transformers(folder: Path) -> Trained:
    images = read_json(folder / "preprocessor_config.json", Preprocessor)
    resample = images.get("resample")
    interpolation = "" if resample is None else PILLOW_INTERPOLATIONS.get(resample, "")
    return Trained(_channels(images.get("image_mean")), _channels(images.get("image_std")), interpolation)


def _of_checkpoint(folder: Path) -> Trained:
    saved = read_json(folder / STATE, Saved)["identity"]
    return Trained(_channels(saved["model.mean"]), _channels(saved["model.std"]), INTERPOLATION)


def _channels(values: Sequence[float] | None) -> Channels | None:
    if not values:
        return None
    red, green, blue = values
    return red, green, blue


def normalised(model: Model, trained: Trained, saved: Mapping[str, Any]) -> Model:
    """Return a model's settings with a mean and a deviation: its own, else a checkpoint's that it goes on from,
    else those of the weights that it starts from, else ImageNet's.
    """
    return replace(
        model,
        mean=model.mean or _channels(saved.get("model.mean")) or trained.mean or IMAGENET_MEAN,
        std=model.std or _channels(saved.get("model.std")) or trained.std or IMAGENET_STD,
    )


def said_of_input(asked: Model, trained: Trained) -> list[str]:
    """Return what is to be said where a model starts from weights: whose mean and deviation, and what differs."""
    both = (("mean", asked.mean, trained.mean), ("std", asked.std, trained.std))  # as asked for, and as trained
    taken = [f"{name} {_numbers(theirs)}" for name, own, theirs in both if theirs and not own]
    unknown = [name for name, own, theirs in both if not own and not theirs]
    said = [
        f"trained with {name} {_numbers(theirs)}, and the recipe says {_numbers(own)}"
        for name, own, theirs in both
        if own and theirs and tuple(own) != theirs
    ]
    if taken:
        said.append(f"{', '.join(taken)} as they were trained")
    if unknown:
        said.append(f"nothing beside them says their {' and '.join(unknown)}: ImageNet's")
    if trained.interpolation not in ("", INTERPOLATION):
        said.append(f"trained on {trained.interpolation} images, which are {INTERPOLATION} here")
    return [*said, *trained.passed_over]


def _numbers(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)
