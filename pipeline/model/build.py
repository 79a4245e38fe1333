"""Building models: timm's, and ours beside them, with initial weights that are a function of the seed."""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, cast

import timm
import torch
from timm.layers import DropPath
from timm.models import VisionTransformer, VisionTransformerDistilled
from torch import nn
from torchvision.ops import StochasticDepth

import pipeline.model.nets  # its models are among timm's from here on
from pipeline.config import Model, Recipe
from pipeline.fields import written
from pipeline.model import torchvision_nets
from pipeline.model.finetune import add_head_norm, classifier_names, freeze
from pipeline.model.weights import load_weights, with_positions_of
from pipeline.randomness import Purpose, generator
from shards.errors import BadRequest, Problem

ARGUMENTS: Final = {  # of timm's models, and what a recipe calls them
    "img_size": "img_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
}


def unknown_model(field: str, name: str) -> Iterator[Problem]:
    """Complain of a name that is neither timm's nor torchvision's; of timm's it may have a tag behind a dot."""
    known = [*timm.list_models(), *torchvision_nets.names()]
    if name in known:
        return
    base = name.partition(".")[0]
    near = difflib.get_close_matches(name, known, n=3)
    if base in known:
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError:  # no such tag
            near = timm.list_models(f"{base}.*", pretrained=True)
        else:
            return
    yield Problem(
        field, f"{written(field, repr(name))} is not known" + (f"; near: {', '.join(near)}." if near else ".")
    )


def build_student(recipe: Recipe, *, head_alone: bool = False, start: bool = True) -> nn.Module:
    """Return the model that a recipe trains, on the CPU, with gradients for what is trained of it.

    Raises BadRequest where it cannot be had. `head_alone` is the first phase of gradual fine-tuning. Without `start`
    the weights that the recipe starts from are not looked for: a checkpoint's follow.
    """
    model = recipe.model
    net = build_model(model if start else model.from_scratch, recipe.data.classes, recipe.seed)
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
    """Return timm's or torchvision's model with weights drawn from `seed`, or read from where the settings say.

    It is on the CPU. Raises BadRequest where it does not take the settings, or a file of weights does not fit.
    """
    published = settings.pretrained and not settings.weights
    # timm initialises from torch's global generator: give it a seed of its own, and the caller's state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, Purpose.INIT).integers(2**63)))
        try:
            model = _create(settings, classes, published=published)
        except (TypeError, ValueError, AssertionError, ArithmeticError, OSError, RuntimeError) as error:
            if published and isinstance(error, OSError | RuntimeError):
                raise BadRequest.of(
                    "model.pretrained", f"--model.pretrained: the weights of {settings.name} cannot be had: {error}"
                ) from error
            raise BadRequest.of(  # whatever timm's models say it with
                "model.name", f"--model.name {settings.name} does not take these settings: {error}."
            ) from error
    if settings.drop_path and settings.drop_path_rule == "uniform":
        _drop_paths_alike(model, settings)
    _set_dropout(model, settings)
    if settings.weights:
        _start_from_file(model, settings)
    return model


def _create(settings: Model, classes: int, *, published: bool) -> nn.Module:
    """Return the network that is named so, at its start or as it is published.  Raises what its library does."""
    if settings.name.startswith(torchvision_nets.PREFIX):
        return _of_torchvision(settings, classes, pretrained=published)
    options = timm_arguments(settings) | ({"drop_path_rate": settings.drop_path} if settings.drop_path else {})
    create = partial(timm.create_model, settings.name, num_classes=classes)
    if published:
        return with_published_weights(create, options)
    net: nn.Module = create(**options)
    if settings.name.startswith("deit"):
        # DeiT and DeiT III draw it as every token; timm's class token starts at 1e-6
        nn.init.trunc_normal_(cast(nn.Parameter, net.cls_token), std=0.02)
    return net


def _of_torchvision(settings: Model, classes: int, *, pretrained: bool) -> nn.Module:
    """Return torchvision's network.  Raises TypeError for settings that it has no argument for, and what it raises."""
    if arguments := timm_arguments(settings):
        raise TypeError(f"it is as torchvision builds it, without {', '.join(arguments)}")
    net = torchvision_nets.create(settings.name, classes, settings.img_size, pretrained=pretrained)
    depths = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    if settings.drop_path and not depths:
        raise TypeError(f"it has no stochastic depth, --model.drop-path {settings.drop_path}")
    highest = max((depth.p for depth in depths), default=0.0)
    for depth in depths:  # they rise as torchvision has them rise
        depth.p *= settings.drop_path / highest
    return net


def with_published_weights(create: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    """Return what `create` makes of timm's arguments, with its published weights.

    A ViT's position embeddings are resized as those of a file are, and not by timm.
    """
    net = create(**options) if "img_size" in options else None
    if not isinstance(net, VisionTransformer):
        return create(pretrained=True, **options)
    as_it_is = {name: value for name, value in options.items() if name not in ("img_size", "patch_size")}
    net.load_state_dict(with_positions_of(net, create(pretrained=True, **as_it_is).state_dict()))
    return net


def _drop_paths_alike(net: nn.Module, settings: Model) -> None:
    """Give each block of a ViT the rate of the last one.  Raises BadRequest for another network."""
    if not isinstance(net, VisionTransformer):
        raise BadRequest.of(
            "model.drop_path_rule", f"--model.drop-path-rule uniform is for ViTs, which {settings.name} is not."
        )
    for name, _ in list(net.named_modules()):
        parent, _, child = name.rpartition(".")
        if child.startswith("drop_path"):
            setattr(net.get_submodule(parent), child, DropPath(settings.drop_path))


def _set_dropout(net: nn.Module, settings: Model) -> None:
    """Set the rate of a network's dropout layers, but for those that DeiT has not: of attention, and before the head.

    What a network has of its own without being asked is off: it would be no part of the recipe, and what it drops
    without a layer would depend on the hosting. Raises BadRequest where it has no such layers.
    """
    left_out = ("attn_drop", "head_drop") if isinstance(net, VisionTransformer) else ("attn_drop",)
    found = False
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if name.rpartition(".")[2] in left_out else settings.dropout
            found |= module.p > 0
        elif isinstance(module, DropPath) and not settings.drop_path:
            module.drop_prob = 0.0
        elif getattr(module, "drop_rate", 0.0):
            module.drop_rate = 0.0
    if settings.dropout and not found:
        raise BadRequest.of(
            "model.dropout",
            f"--model.dropout {settings.dropout}: {settings.name} has no layers of dropout; take --model.dropout 0.",
        )


def check_start(recipe: Recipe) -> str:
    """Return what is found in the file of weights that a recipe starts from, in words.

    Raises BadRequest where it does not fit the model.
    """
    with torch.device("meta"):
        bare = build_model(recipe.model.from_scratch, recipe.data.classes, recipe.seed)
        return _start_from_file(bare, recipe.model)


def _start_from_file(net: nn.Module, settings: Model) -> str:
    return load_weights(net, settings.weights, "model.weights", classifier_names(net), new_heads=settings.new_head)


def timm_arguments(settings: Model) -> dict[str, Any]:
    """Return what a model's settings change of the timm model it is named for, as timm's arguments."""
    arguments = {name: getattr(settings, ours) for name, ours in ARGUMENTS.items()}
    if not has_fixed_size(settings.name):  # a network of convolutions takes any size, and no argument for it
        del arguments["img_size"]
    return {name: value for name, value in arguments.items() if value is not None}


def is_ours(name: str) -> bool:
    """Return whether a model is one that timm lacks without `import pipeline.model.nets`."""
    return bool(timm.models.model_entrypoint(name).__module__.startswith(pipeline.model.nets.__name__))


def has_fixed_size(name: str) -> bool:
    """Return whether a timm model is built for one size of image."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def on_meta(recipe: Recipe) -> nn.Module:
    """Return the recipe's model without memory for its weights.  Raises BadRequest if it cannot be built."""
    with torch.device("meta"):
        return build_student(recipe, start=False)


def template(net: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode that has no memory for its weights, to be given some."""
    memo = {id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in net.parameters()}
    return copy.deepcopy(net, memo).eval()


def parameter_count(net: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in net.parameters())
