"""The teacher: a frozen model that sees the student's views.

Shapes: B images, C classes.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from pipeline.config import LOCAL_DIR, Distill, Model, Recipe
from pipeline.folder import RunFolder
from pipeline.model import torchvision_nets
from pipeline.model.build import has_fixed_size, unknown_model, with_published_weights
from pipeline.model.weights import load_weights
from pipeline.model.weights_file import file_of
from shards.errors import BadRequest, DamagedFile
from shards.files import read_json


class Input(NamedTuple):
    """What a model takes: square images of a size in pixels, with channels of this mean and deviation in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TrainedInput(TypedDict):
    """What config.json of a run says of its images."""

    input_size: list[int]
    mean: list[float]
    std: list[float]


class RunConfig(TypedDict):
    """What is read of config.json of a run, beside what timm reads of it."""

    architecture: str
    num_classes: int
    pretrained_cfg: TrainedInput


class Teacher(nn.Module):
    """A frozen model that takes views as the student's `Model` takes them."""

    factor: Tensor
    summand: Tensor

    def __init__(self, net: nn.Module, expects: Input, student: Model) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.size = expects.size
        # (x std + mean - mean') / std', as one factor and one summand; none where both take the same
        means, stds = (torch.tensor(pair).view(2, 3, 1, 1) for pair in ((student.mean, expects.mean),
                                                                        (student.std, expects.std)))  # fmt: skip
        self.same_colours = bool((means[0] == means[1]).all() and (stds[0] == stds[1]).all())
        self.register_buffer("factor", stds[0] / stds[1])
        self.register_buffer("summand", (means[0] - means[1]) / stds[1])

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, 3, S, S] normalised for the student."""
        if not self.same_colours:
            images = torch.addcmul(self.summand, images, self.factor)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        logits: Tensor = self.net(images.contiguous(memory_format=torch.channels_last))
        return logits


def build_teacher(recipe: Recipe) -> Teacher:
    """Return the teacher of a recipe with its weights, on the CPU.  Raises BadRequest where they cannot be had."""
    distill = recipe.distill
    net = _create(distill, recipe.data.classes, weights=not distill.weights)
    if distill.weights:
        load_weights(net, distill.weights, "distill.weights")
    return Teacher(net.to(memory_format=torch.channels_last), _input(net, distill), recipe.model)


def on_meta(recipe: Recipe) -> Teacher:
    """Return the teacher of a recipe without memory for its weights.  Raises BadRequest where it cannot be had."""
    distill = recipe.distill
    with torch.device("meta"):
        net = _create(distill, recipe.data.classes, weights=False)
    return Teacher(net, _input(net, distill), recipe.model)


def check_teacher(recipe: Recipe, *, fetched: bool = True) -> str:
    """Return what is found in the file of the teacher's weights, in words; empty where there is none.

    Raises BadRequest if the teacher does not fit the recipe, as far as can be told without its weights' memory. Where
    published weights will not be `fetched`, as in a rehearsal, it does not matter whether there are any.
    """
    distill, classes = recipe.distill, recipe.data.classes
    if not distill.teacher.startswith(LOCAL_DIR):
        if unknown := list(unknown_model("distill.teacher", distill.teacher)):
            raise BadRequest(unknown)
    else:
        folder = RunFolder(Path(distill.teacher.removeprefix(LOCAL_DIR)))
        unfinished = folder.recipe.exists() and not folder.ended()  # else it is one that was exported
        if unfinished or not (folder.timm_config.is_file() and folder.weights.is_file()):
            raise BadRequest.of(
                "distill.teacher",
                f"--distill.teacher {distill.teacher}: {folder} is not the folder of a finished run.",
            )
    if lacks_weights(distill) and not fetched:
        return ""
    with torch.device("meta"):
        net = _create(distill, classes, weights=False)
    if distill.weights:
        return load_weights(net, distill.weights, "distill.weights")
    if distill.teacher.startswith(torchvision_nets.PREFIX):
        taught = torchvision_nets.published(distill.teacher).classes
    else:
        config: Any = net.pretrained_cfg
        taught = config["num_classes"]
        if not any(config.get(source) for source in ("hf_hub_id", "url", "file")):
            raise BadRequest.of(
                "distill.weights", f"--distill.weights is missing: no weights are published for {distill.teacher}."
            )
    if taught != classes:
        raise BadRequest.of(
            "distill.teacher", f"--distill.teacher {distill.teacher} knows {taught} classes, the recipe has {classes}."
        )
    return ""


def write_random_weights(recipe: Recipe, path: Path) -> None:
    """Write weights that a recipe's teacher never learnt: they do for a rehearsal, and for timing."""
    save_file(_create(recipe.distill, recipe.data.classes, weights=False).state_dict(), path)


def weights_file(distill: Distill) -> Path | None:
    """Return the file of the teacher's weights, None where they are the published ones."""
    if distill.teacher.startswith(LOCAL_DIR):
        return RunFolder(Path(distill.teacher.removeprefix(LOCAL_DIR))).weights
    return file_of(distill.weights) if distill.weights else None


def lacks_weights(distill: Distill) -> bool:
    """Return whether a teacher's weights would have to be fetched."""
    return bool(distill.teacher) and weights_file(distill) is None


def _create(distill: Distill, classes: int, *, weights: bool) -> nn.Module:
    name = architecture = distill.teacher
    try:
        if name.startswith(LOCAL_DIR):
            run = RunFolder(Path(name.removeprefix(LOCAL_DIR)))
            config = read_json(run.timm_config, RunConfig)
            architecture = config["architecture"]
            if architecture.startswith(torchvision_nets.PREFIX):
                return _of_torchvision(config, run, distill, weights=weights)
        if name.startswith(torchvision_nets.PREFIX):
            return torchvision_nets.create(name, classes, distill.img_size, pretrained=weights)
        resized = distill.img_size and has_fixed_size(architecture)
        options: dict[str, Any] = {"img_size": distill.img_size} if resized else {}
        create = partial(timm.create_model, name, num_classes=classes)
        net: nn.Module = with_published_weights(create, options) if weights else create(**options)
    except (TypeError, ValueError, AssertionError, OSError, RuntimeError, DamagedFile) as error:
        raise BadRequest.of("distill.teacher", f"--distill.teacher {name}: cannot be had ({error}).") from error
    return net


def _of_torchvision(config: RunConfig, run: RunFolder, distill: Distill, *, weights: bool) -> nn.Module:
    """Return the network of a run that trained one of torchvision's, with the run's weights where asked for.

    Raises BadRequest where it takes images of the run's size alone, and another is asked for.
    """
    said = config["pretrained_cfg"]
    size = said["input_size"][-1]
    net: Any = torchvision_nets.create(config["architecture"], config["num_classes"], size)
    if isinstance(net, VisionTransformer) and distill.img_size not in (None, size):
        raise BadRequest.of(
            "distill.img_size",
            f"--distill.img-size {distill.img_size}: {run} was trained at {size} px, and torchvision's ViT takes no "
            f"other size. Leave it out.",
        )
    net.pretrained_cfg |= {**said, "file": str(run.weights)}
    if weights:
        load_weights(net, str(run.weights), "distill.teacher")
    return net


def _input(net: nn.Module, distill: Distill) -> Input:
    """Return what the teacher takes: as the request says, else as its weights were trained."""
    config = resolve_data_config(model=net)
    return Input(distill.img_size or config["input_size"][-1], distill.mean or config["mean"],
                 distill.std or config["std"])  # fmt: skip
