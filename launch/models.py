"""`vitrail models`: what can be trained, of timm, of torchvision and of ours; nothing is fetched."""

import difflib
import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table

from launch.verb import Json, Verb
from pipeline.config import Channels
from pipeline.config import Model as Settings
from pipeline.model import torchvision_nets
from pipeline.model.build import build_model, is_ours, parameter_count
from pipeline.model.finetune import classifier_names
from shards.errors import BadRequest
from shards.progress import progress
from shards.terminal import plain


@dataclass(frozen=True)
class Model:
    """What can be said of a model without its weights; what only its network tells is None where it was not built."""

    name: str
    library: str  # timm, torchvision or vitrail
    size: int  # side of its default input, pixels
    mean: Channels  # of that input, in [0, 1]
    std: Channels
    weights: tuple[str, ...]  # published ones: tags of timm's, behind a dot of the name
    head: tuple[str, ...] | None = None  # its last layers
    parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class ListModels(Verb):
    """List the models that can be trained: timm's, torchvision's and ours, with parameters, input and head.

    Example: vitrail models deit_small
    """

    pattern: tyro.conf.Positional[str] = ""
    """Part of a name, or a pattern with * and ?. Without it all are listed, and none is built to count parameters"""
    classes: int = 1000  # of the head, which is counted
    json: Json = False  # for scripts

    def __call__(self) -> int:
        """Print a table, or JSON for scripts."""
        if self.classes < 1:
            raise BadRequest.of("classes", f"--classes is {self.classes}; it starts at 1.")
        names = named(self.pattern)
        models = described(names)
        if self.pattern:
            models = progress((built(model, self.classes) for model in models), len(names), "building")
        if self.json:
            print(json.dumps([asdict(model) for model in models], indent=2))
        else:
            show(list(models))
        return 0


VERB: Final = ListModels


def named(pattern: str) -> list[str]:
    """Return the models that a pattern names.  Raises BadRequest where it names none."""
    known = [*timm.list_models(), *torchvision_nets.names()]
    if found := fnmatch.filter(known, pattern if set("*?[") & set(pattern) else f"*{pattern}*"):
        return found
    near = difflib.get_close_matches(pattern, known, n=3)
    raise BadRequest.of(
        "pattern", f"{pattern}: no model is called so" + (f"; near: {', '.join(near)}." if near else ".")
    )


def described(names: Iterable[str]) -> Iterator[Model]:
    """Yield what libraries say of their models."""
    tags: dict[str, list[str]] = {}
    for tagged in timm.list_pretrained():
        name, _, tag = tagged.partition(".")
        tags.setdefault(name, []).append(tag)
    for name in names:
        if name.startswith(torchvision_nets.PREFIX):
            images = torchvision_nets.published(name)
            yield Model(name, "torchvision", images.size, images.mean, images.std, ("DEFAULT",))
        else:
            config: Any = timm.get_pretrained_cfg(name)
            library = "vitrail" if is_ours(name) else "timm"
            weights = tuple(tags.get(name, ()))
            yield Model(name, library, config.input_size[-1], config.mean, config.std, weights)


def built(model: Model, classes: int) -> Model:
    """Return a model with what its network tells, which is built without memory for its weights."""
    with torch.device("meta"):
        net = build_model(Settings(name=model.name, img_size=model.size), classes, seed=0)
    return replace(model, head=classifier_names(net), parameters=parameter_count(net))


def show(models: Sequence[Model]) -> None:
    """Print models as a table."""
    table = Table()
    for column in ("--model.name", "library", "parameters", "input", "head", "published weights"):
        # a name may be long, and is of no use but whole
        table.add_column(column, justify="right" if column in ("parameters", "input") else "left", overflow="fold")
    for model in models:
        count = "" if model.parameters is None else f"{model.parameters:,}"
        row = (model.name, model.library, count, f"{model.size} px", ", ".join(model.head or ()))
        table.add_row(*map(plain, [*row, ", ".join(model.weights)]))
    Console().print(table)
