"""Trained models by name: the folder of a run or of an exported model, or a model of timm or torchvision."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import timm
import tyro
from numpy.typing import NDArray
from timm.data import ImageNetInfo, infer_imagenet_subset

from launch.verb import RecipeVerb, flags
from pipeline import checkpoint
from pipeline.config import Compute, Finetune, Model, Recipe
from pipeline.folder import Beginning, RunFolder
from pipeline.job import Job
from pipeline.model import torchvision_nets
from pipeline.model.build import unknown_model
from pipeline.model.hub import evaluating, read_config, recipe_of_config
from pipeline.request import Request, parse
from shards.errors import BadRequest, DamagedFile, Problem
from shards.files import read_json

Weights = Literal["raw", "ema"]
TORCHVISION_CROP: Final = 0.875  # of its first weights; of others: --eval.crop-ratio


@dataclass(frozen=True)
class Trained:
    """A trained model: a recipe that builds it with its weights, and what is known of it."""

    recipe: Recipe
    weights: str  # which, in words
    classes: tuple[str, ...] = ()  # names, in the order of their numbers; empty where nothing says them
    descriptions: Mapping[str, str] = field(default_factory=dict)  # of classes, by name, where names are codes
    run: RunFolder | None = None  # where it was trained
    step: int | None = None  # of its run, where that is known

    def named(self, number: int) -> str:
        """Return the name of a class, its number where it has none."""
        return self.classes[number] if number < len(self.classes) else str(number)

    def described(self, number: int) -> str:
        """Return a class for people: its name, and what that stands for."""
        name = self.named(number)
        return f"{name} {self.descriptions[name]}" if name in self.descriptions else name


@dataclass(frozen=True, kw_only=True)
class TrainedVerb(RecipeVerb):
    """A verb that works on a trained model, and takes the fields of its recipe beside its options."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|MODEL")]
    """Folder of a run or of an exported model; or a model of timm or torchvision, published or with --model.weights"""
    weights: Weights = "raw"  # of a run: its weights, or their moving average (EMA)

    def asked(self, arguments: list[str]) -> tuple[Trained, Request]:
        """Return the trained model, and what the arguments ask for of its recipe.  Raises BadRequest."""
        trained = trained_model(self.recipe, self.weights)
        request = parse(trained.recipe, arguments, verb_flags=flags(self), reads=self.reads)
        model = request.recipe.model
        if not (model.weights or model.pretrained):
            raise BadRequest(
                [
                    *request.unknown,
                    Problem(
                        "model.weights",
                        f"--model.weights is missing: no weights are published for {model.name}. Name a file.",
                    ),
                ]
            )
        if model.weights != trained.recipe.model.weights:  # whose classes nothing tells, of a library's model
            classes = trained.classes if trained.run else ()
            trained = replace(trained, weights=model.weights, classes=classes, descriptions={})
        return replace(trained, recipe=request.recipe), request


def refuse_many(job: Job, verb: str) -> None:
    """Raise BadRequest where a verb that works in one process was started in several."""
    if job.hosting.processes > 1:
        raise BadRequest.of("processes", f"vitrail {verb} works in one process: start it without a launcher.")


def trained_model(name: str, weights: Weights) -> Trained:
    """Return the trained model that is named so.  Raises BadRequest where there is none."""
    path = Path(name)
    folder = RunFolder(path)
    if folder.recipe.exists():
        return of_run(folder, weights)
    if weights == "ema":
        raise BadRequest.of("weights", f"--weights ema is for the folder of a run, which {name} is not; leave it out.")
    if not path.is_dir():
        return of_library(name)
    if not folder.timm_config.exists():
        raise BadRequest.of("recipe", f"{name}: neither the folder of a run nor that of an exported model.")
    config = read_config(folder.timm_config)
    recipe = with_weights(recipe_of_config(config, folder.timm_config), folder.weights)
    return Trained(recipe, "as exported", tuple(config.get("label_names", ())))


def of_run(folder: RunFolder, weights: Weights) -> Trained:
    """Return what a run trained: the weights of its end, or of its newest checkpoint, whichever is of more steps.

    Raises BadRequest where it has none, or was begun by a version with another kind of recipe.
    """
    try:
        recipe = msgspec.convert(read_json(folder.recipe, Beginning)["recipe"], Recipe)
    except (DamagedFile, msgspec.ValidationError) as error:
        raise BadRequest.of(
            "recipe",
            f"{folder.recipe}: no recipe of this version of Vitrail ({error}). Take the version that it names.",
        ) from error
    ended = folder.ended()
    step = ended.get("exported_step") if ended else None
    file = {"raw": folder.weights, "ema": folder.ema_weights}[weights]
    said, classes = f"{weights} weights", tuple[str, ...]()
    if folder.timm_config.exists():
        classes = tuple(read_config(folder.timm_config).get("label_names", ()))
    saved = checkpoint.checkpoints(folder.checkpoints)
    if saved and checkpoint.step_of(saved[0]) > (ended["steps"] if ended else 0):  # a run that ended may have gone on
        file = saved[0] / {"raw": checkpoint.MODEL, "ema": "ema.safetensors"}[weights]
        step = checkpoint.step_of(saved[0])
        said += f" of step {step}, which is not the last"
        if recipe.finetune.head_norm:
            raise BadRequest.of("recipe", f"{folder}: its head is normalised, which is undone at the end of the run.")
    if not file.exists():
        what = "keeps no moving average" if weights == "ema" and folder.weights.exists() else "has no weights yet"
        raise BadRequest.of("weights", f"{folder}: this run {what} ({file} is missing).")
    return Trained(with_weights(recipe, file), said, classes, run=folder, step=step)


def with_weights(recipe: Recipe, file: Path) -> Recipe:
    """Return a recipe that builds a model with the weights of a file, with nothing of how it was trained."""
    return replace(
        recipe,
        model=replace(recipe.model, weights=str(file), pretrained=False, new_head=False, dropout=0.0, drop_path=0.0),
        data=replace(recipe.data, subset=0),
        finetune=Finetune(),
        compute=Compute(),
        micro_batch="auto",
    )


def of_library(name: str) -> Trained:
    """Return a published model.  Raises BadRequest where no library knows it."""
    if unknown := list(unknown_model("recipe", name)):
        near = unknown[0].sentence.removeprefix(f"--recipe {name!r} is not known").strip("; .")
        raise BadRequest.of(
            "recipe",
            f"{name}: no folder of a run, and no model of timm or torchvision" + (f"; {near}." if near else "."),
        )
    if name.startswith(torchvision_nets.PREFIX):
        by = torchvision_nets.published(name)
        model = Model(name=name, img_size=by.size, mean=by.mean, std=by.std, pretrained=True)
        return Trained(
            evaluating(model, by.classes, TORCHVISION_CROP), "published by torchvision", *imagenet_classes(by.classes)
        )
    config: Any = timm.get_pretrained_cfg(name)
    model = Model(
        name=name,
        img_size=config.input_size[-1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        pretrained=bool(config.has_weights),
    )
    classes, descriptions = config.label_names, config.label_descriptions
    known = (tuple(classes), descriptions or {}) if classes else imagenet_classes(config.num_classes)
    return Trained(evaluating(model, config.num_classes, config.crop_pct), "published by timm", *known)


def imagenet_classes(count: int) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Return names and descriptions of the classes of ImageNet or a part of it, as timm tells it by their number."""
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return (), {}
    info = ImageNetInfo(subset)
    names = tuple(info.label_names())
    return names, {name: info.label_name_to_description(name) for name in names}


def numbers_of(data: Sequence[str], trained: Trained) -> tuple[NDArray[np.int64], str]:
    """Return what a model calls the classes of data, by number, and a sentence where that is worth one.

    They go by name: the model's own names, or its numbers, as the folders of ImageNet-V2 are called. So a part of the
    classes can be evaluated. Else they are taken in their order. Raises BadRequest where their numbers differ.
    """
    count, known = trained.recipe.data.classes, {name: number for number, name in enumerate(trained.classes)}
    if all(name in known for name in data):
        return np.array([known[name] for name in data], np.int64), ""
    if all(re.fullmatch("[0-9]{1,9}", name) for name in data) and max(map(int, data)) < count:
        return np.array([int(name) for name in data], np.int64), ""
    if len(data) != count:
        strange = next(name for name in data if name not in known)
        raise BadRequest.of(
            "data",
            f"the data has {len(data)} classes, the model knows {count}, and none of them is called {strange!r}. Name "
            f"data whose classes the model knows.",
        )
    first = f"{data[0]!r} in the data, {trained.classes[0]!r} to the model" if known else ""
    note = f"Classes are taken in their order; the first is called {first}." if known else ""
    return np.arange(count), note


def with_names(trained: Trained, data: Sequence[str], numbers: NDArray[np.int64]) -> Trained:
    """Return a model, of whose classes nothing says the names, with those that the data has for them."""
    names = [str(number) for number in range(trained.recipe.data.classes)]
    for name, number in zip(data, numbers.tolist(), strict=True):
        names[number] = name
    return replace(trained, classes=tuple(names))
