"""config.json of a model, as timm and the hub have it: of a recipe's model, and back to one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec
import timm

from pipeline.config import Data, Eval, Model, Optim, Recipe
from pipeline.model.build import ARGUMENTS, timm_arguments
from pipeline.model.start import INTERPOLATION
from shards.errors import BadRequest, DamagedFile
from shards.files import read_json


class HubInput(TypedDict):
    """What config.json says of a model's images."""

    input_size: list[int]
    mean: list[float]
    std: list[float]
    crop_pct: NotRequired[float]


class HubConfig(TypedDict):
    """What is read of config.json of a model that was exported, or of a run."""

    architecture: str
    num_classes: int
    pretrained_cfg: HubInput
    model_args: NotRequired[dict[str, Any]]
    label_names: NotRequired[list[str]]


def timm_config(recipe: Recipe, classes: Sequence[str], num_features: Any) -> dict[str, Any]:
    """Return config.json, by which `timm.create_model("local-dir:FOLDER")` builds a recipe's model.

    A network that timm lacks is known to it after `import pipeline.model.nets`.
    """
    model, count = recipe.model, recipe.data.classes
    return {
        "architecture": timm.models.split_model_name_tag(model.name)[0],
        "num_classes": count,
        "num_features": num_features,
        "pretrained_cfg": {
            "input_size": [3, model.img_size, model.img_size],
            "mean": model.mean,
            "std": model.std,
            "interpolation": INTERPOLATION,
            "crop_pct": recipe.eval.crop_ratio,
            "num_classes": count,
        },
        "model_args": timm_arguments(model),
        **({"label_names": list(classes)} if classes else {}),
    }


def read_config(path: Path) -> HubConfig:
    """Return config.json of a model.  Raises BadRequest where it is not one."""
    try:
        return read_json(path, HubConfig)
    except DamagedFile as error:
        raise BadRequest.of("recipe", f"{error} It is not what timm or Vitrail writes of a model.") from error


def recipe_of_config(config: HubConfig, path: Path) -> Recipe:
    """Return a recipe that evaluates the model of config.json, without its weights.

    Raises BadRequest for arguments of timm's that a recipe has no field for.
    """
    arguments = config.get("model_args", {})
    if unknown := arguments.keys() - ARGUMENTS.keys():
        raise BadRequest.of("recipe", f"{path}: a model with {', '.join(sorted(unknown))}, which no recipe can say.")
    images = config["pretrained_cfg"]
    said = {"name": config["architecture"], "img_size": images["input_size"][-1],
            "mean": images["mean"], "std": images["std"]}  # fmt: skip
    try:
        model = msgspec.convert(said | {ARGUMENTS[name]: value for name, value in arguments.items()}, Model)
    except msgspec.ValidationError as error:
        raise BadRequest.of("recipe", f"{path}: {error}. It is not what timm or Vitrail writes of a model.") from error
    return evaluating(model, config["num_classes"], images.get("crop_pct", 1.0))


def evaluating(model: Model, classes: int, crop_ratio: float) -> Recipe:
    """Return a recipe that evaluates a model; what it says of training means nothing."""
    return Recipe(
        name=model.name,
        model=model,
        data=Data(classes=classes, images=1),
        optim=Optim(lr=1e-3, warmup_epochs=0),
        eval=Eval(crop_ratio=crop_ratio),
        batch=1,
        virtual_ranks=1,
        epochs=1,
        precision="fp32",
    )
