"""Building models: timm's, and ours beside them, with initial weights that are a function of the seed."""

import copy
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models import VisionTransformer, VisionTransformerDistilled
from torch import nn

from pipeline.config import Model, Recipe
from pipeline.fields import written
from pipeline.model.finetune import add_head_norm, classifier_names, freeze

# their models are among timm's from here on
from pipeline.model.nets import cifar_resnet, vit_plain, vit_pytorch, vit_stem  # noqa: F401
from pipeline.model.weights import load_weights
from pipeline.randomness import Purpose, generator
from shards.errors import BadRequest, Problem


def unknown_model(field: str, name: str, others: Sequence[str] = ()) -> Iterator[Problem]:
    """Complain of a name that is neither timm's nor among others; a timm name may have a tag behind a dot."""
    known = [*timm.list_models(), *others]
    if name not in known and name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3)
        yield Problem(
            field, f"{written(field, repr(name))} is not known" + (f"; near: {', '.join(near)}." if near else ".")
        )


def build_student(recipe: Recipe, *, head_alone: bool = False, start: bool = True) -> nn.Module:
    """Return the model that a recipe trains, on the CPU, with gradients for what is trained of it.

    Raises BadRequest where it cannot be had. `head_alone` is the first phase of gradual fine-tuning. Without `start`
    the weights that the recipe starts from are not looked for: a checkpoint's follow.
    """
    model = recipe.model if start else replace(recipe.model, pretrained=False, weights="")
    net = build_model(model, recipe.data.classes, recipe.seed)
    if recipe.compute.activation_checkpointing:
        if not isinstance(net, VisionTransformer):  # in whose blocks there is no batch norm to count images twice
            raise BadRequest.of(
                "compute.activation_checkpointing",
                f"--compute.activation-checkpointing is for ViTs, which {model.name} is not.",
            )
        net.set_grad_checkpointing()
    if recipe.finetune.head_norm:
        add_head_norm(net)
    freeze(net, recipe.finetune, head_alone=head_alone)
    distill = recipe.distill
    if distill.teacher and distill.token != isinstance(net, VisionTransformerDistilled):
        raise BadRequest.of(
            "model.name",
            f"--model.name {model.name} has no distillation token. Take a model that has one "
            f"(deit_small_distilled_patch16_224), or let the teacher teach the class token: --distill.no-token"
            if distill.token
            else f"--distill.no-token: {model.name} has a distillation token, which nobody would teach. "
            f"Take a model without one.",
        )
    if distill.teacher and isinstance(net, VisionTransformerDistilled):
        net.set_distilled_training(True)  # from here on, two heads: see `heads`
    return net


def build_model(settings: Model, classes: int, seed: int) -> nn.Module:
    """Return the timm model with weights drawn from `seed`, or read from where the settings say; on the CPU.

    Raises BadRequest where the model does not take the settings, or a file of weights does not fit.
    """
    options = timm_arguments(settings) | ({"drop_path_rate": settings.drop_path} if settings.drop_path else {})
    published = settings.pretrained and not settings.weights
    # timm initialises from torch's global generator: give it a seed of its own, and the caller's state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, Purpose.INIT).integers(2**63)))
        try:
            model = timm.create_model(settings.name, pretrained=published, num_classes=classes, **options)
        except (TypeError, ValueError, AssertionError, ArithmeticError) as error:  # whatever timm's models say it with
            raise BadRequest.of(
                "model.name", f"--model.name {settings.name} does not take these settings: {error}."
            ) from error
        except (OSError, RuntimeError) as error:
            raise BadRequest.of(
                "model.pretrained", f"--model.pretrained: the weights of {settings.name} cannot be had: {error}"
            ) from error
    if settings.weights:
        new_heads = classifier_names(model) if settings.new_head else ()
        load_weights(model, settings.weights, "model.weights", new_heads)
    return model


def timm_arguments(settings: Model) -> dict[str, Any]:
    """Return what a model's settings change of the timm model it is named for, as timm's arguments."""
    arguments = {
        # a network of convolutions takes any size, and no argument for it
        "img_size": settings.img_size if has_fixed_size(settings.name) else None,
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "mlp_ratio": settings.mlp_ratio,
        "init_values": settings.layer_scale,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def has_fixed_size(name: str) -> bool:
    """Return whether a timm model is built for one size of image."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def on_meta(recipe: Recipe, *, start: bool = True) -> nn.Module:
    """Return the recipe's model without memory for its weights.  Raises BadRequest if it cannot be built.

    With `start`, a file of weights that the recipe starts from is read too, to see whether it fits.
    """
    with torch.device("meta"):
        return build_student(replace(recipe, model=replace(recipe.model, pretrained=False)), start=start)


def template(net: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode that has no memory for its weights, to be given some."""
    memo = {id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in net.parameters()}
    return copy.deepcopy(net, memo).eval()


def parameter_count(net: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in net.parameters())
