"""Models: timm's, with weights and stochastic depth that are functions of the seed, and with one head or two.

Shapes: B images of a batch, C classes, D stochastic-depth modules, H heads: 2 where a distillation token is taught
by a teacher, first the class token's, then the distillation token's; else 1.
"""

import copy
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from timm.layers import DropPath
from timm.models import VGG, VisionTransformer, VisionTransformerDistilled, load_state_dict
from timm.models.vgg import _filter_fn as vgg_names
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from pipeline.config import Compute, Model, Recipe
from pipeline.finetune import add_head_norm, classifier_names, freeze, frozen_modules
from pipeline.randomness import Purpose, generator, uniforms
from shards.errors import BadRequest


def build_student(recipe: Recipe, *, head_alone: bool = False) -> nn.Module:
    """Return the model that a recipe trains, on the CPU, with gradients for what is trained of it.

    Raises BadRequest where it cannot be had. `head_alone` is the first phase of gradual fine-tuning.
    """
    net = build_model(recipe.model, recipe.data.classes, recipe.seed)
    if recipe.compute.activation_checkpointing:
        if not isinstance(net, VisionTransformer):  # in whose blocks there is no batch norm to count images twice
            raise BadRequest([f"--compute.activation-checkpointing is for ViTs, which {recipe.model.name} is not."])
        net.set_grad_checkpointing()
    if recipe.finetune.head_norm:
        add_head_norm(net)
    freeze(net, recipe.finetune, head_alone=head_alone)
    distill = recipe.distill
    if distill.teacher and distill.token != isinstance(net, VisionTransformerDistilled):
        raise BadRequest(
            [
                f"--model.name {recipe.model.name} has no distillation token. Take a model that has one "
                f"(deit_small_distilled_patch16_224), or let the teacher teach the class token: --distill.no-token"
                if distill.token
                else f"--distill.no-token: {recipe.model.name} has a distillation token, which nobody would teach. "
                f"Take a model without one."
            ]
        )
    if distill.teacher and isinstance(net, VisionTransformerDistilled):
        net.set_distilled_training(True)  # from here on, two heads: see `heads`
    return net


def build_model(settings: Model, classes: int, seed: int) -> nn.Module:
    """Return the timm model with weights drawn from `seed`, or read from where the settings say; on the CPU.

    Raises BadRequest where the model does not take the settings, or a checkpoint does not fit.
    """
    options = shape(settings) | ({"drop_path_rate": settings.drop_path} if settings.drop_path else {})
    published = settings.pretrained and not settings.checkpoint
    # timm initialises from torch's global generator: give it a seed of its own, and the caller's state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, Purpose.INIT).integers(2**63)))
        try:
            model = timm.create_model(settings.name, pretrained=published, num_classes=classes, **options)
        except (TypeError, ValueError, AssertionError, ArithmeticError) as error:  # whatever timm's models say it with
            raise BadRequest([f"--model.name {settings.name} does not take these settings: {error}."]) from error
        except (OSError, RuntimeError) as error:
            raise BadRequest([f"--model.pretrained: the weights of {settings.name} cannot be had: {error}"]) from error
    if settings.checkpoint:
        new_heads = classifier_names(model) if settings.new_head else ()
        load_weights(model, settings.checkpoint, "--model.checkpoint", new_heads)
    return model


def shape(settings: Model) -> dict[str, Any]:
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


def load_weights(net: nn.Module, path: str, flag: str, new_heads: tuple[str, ...] = ()) -> None:
    """Give a model the weights of a file: safetensors, or a state dict of torch.save, never unpickled further.

    Wrappers' prefixes are taken off, position embeddings resized to the model's grid (bicubic, DeiT section 6), and
    `new_heads` left as they are. Raises BadRequest, speaking of `flag`, with the tensors that do not fit.
    """
    if not Path(path).is_file():
        raise BadRequest([f"{flag} {path}: no such file."])
    try:
        tensors = as_timm_names_them(load_state_dict(path, use_ema=False), net)
    except (OSError, RuntimeError, ValueError, AttributeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise BadRequest([f"{flag} {path}: not a file of weights alone ({reason})"]) from error
    expected = net.state_dict()
    tensors = {name: value for name, value in tensors.items() if not name.startswith(new_heads)}
    tensors |= {name: value for name, value in expected.items() if name.startswith(new_heads)}
    wrong = [
        *(f"{name} is missing" for name in expected.keys() - tensors.keys() if not name.endswith("_tracked")),
        *(f"{name} is not in the model" for name in tensors.keys() - expected.keys()),
        *(
            f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}"
            for name in expected.keys() & tensors.keys()
            if tensors[name].shape != expected[name].shape
        ),
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise BadRequest([f"{flag} {path}: these weights are of another model or other classes: {shown}."])
    # a model without memory of its own is only checked: it takes the file's tensors as they are
    net.load_state_dict(tensors, assign=any(value.is_meta for value in expected.values()))


def heads(net: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [H, B, C] of a model for normalised images [B, 3, S, S], in training and in evaluation."""
    if not (isinstance(net, VisionTransformerDistilled) and net.distilled_training):
        logits: Tensor = net(images)
        return logits[None]
    features = net.forward_features(images)
    return torch.stack([net.head(features[:, 0]), net.head_dist(features[:, 1])])


def fuse(logits: Tensor, fusion: Literal["paper", "code"]) -> Tensor:
    """Return the answer [B, C] of heads [H, B, C], as logits: of the mean softmax (DeiT, section 4), or the mean."""
    if len(logits) == 1 or fusion == "code":
        return logits.mean(0)
    return logits.log_softmax(2).logsumexp(0)


def as_timm_names_them(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return weights made elsewhere by the names of the timm model that takes them, by timm's own rules."""
    if isinstance(net, VisionTransformer):
        return checkpoint_filter_fn(tensors, net)
    if isinstance(net, VGG):
        return vgg_names(tensors)
    return tensors  # a ResNet's names are torchvision's


class KeyedDropPath(nn.Module):
    """Stochastic depth that takes its decision for each view from the student instead of drawing it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale: Tensor | None = None  # [B]: 1 / (1 - drop_prob) where the path is kept, else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [B, ...], with dropped paths zeroed and the others scaled up; x itself in eval mode."""
        if not self.training:
            return x
        assert self.scale is not None, "the student hands the scales in before every training pass"
        return x * self.scale.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


class Student(nn.Module):
    """A timm model whose stochastic depth is drawn by view key, computed as asked."""

    drop_rates: Tensor  # [D]

    def __init__(self, net: nn.Module, compute: Compute | None = None) -> None:
        super().__init__()
        compute = compute or Compute()
        self.net = net
        self.layout = torch.channels_last if compute.channels_last else torch.contiguous_format
        for name, module in list(net.named_modules()):
            if isinstance(module, DropPath):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, KeyedDropPath(module.drop_prob))
        self.frozen = frozen_modules(net)
        self.drop_paths = [module for module in net.modules() if isinstance(module, KeyedDropPath)]
        rates = torch.tensor([module.drop_prob for module in self.drop_paths])
        self.register_buffer("drop_rates", rates, persistent=False)
        if compute.compile:
            # by block: one compilation serves all, and engines exchange a block's gradients when it is done
            for part in getattr(net, "blocks", [net]):
                part.compile()

    def train(self, mode: bool = True) -> "Student":
        """Set the mode of what is trained; what is not stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return the logits [H, B, C] of normalised images [B, 3, S, S] whose views have the keys int64 [B]."""
        if self.drop_paths:
            kept = uniforms(keys, Purpose.DROP_PATH, len(self.drop_paths)) >= self.drop_rates  # [B, D]
            for module, scale in zip(self.drop_paths, (kept / (1 - self.drop_rates)).unbind(1), strict=True):
                module.scale = scale
        return heads(self.net, images.contiguous(memory_format=self.layout))


def on_paper(recipe: Recipe) -> nn.Module:
    """Return the recipe's model without memory for its weights.  Raises BadRequest if it cannot be built."""
    with torch.device("meta"):
        return build_student(replace(recipe, model=replace(recipe.model, pretrained=False)))


def without_weights(net: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode that has no memory for its weights, to be given some."""
    memo = {id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in net.parameters()}
    return copy.deepcopy(net, memo).eval()


def parameter_count(net: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in net.parameters())
