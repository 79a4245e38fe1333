"""torchvision's networks that classify images, with what timm's say of themselves: head, its width, input, no decay."""

import re
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import torch
import torchvision.models
from accelerate import init_empty_weights
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from pipeline.config import Channels

PREFIX: Final = "torchvision:"  # before a network's name
# without a second head; their published weights were trained with the normalisation that they have of their own
INCEPTIONS: Final = {"aux_logits": False, "init_weights": True, "transform_input": True}
UNDECAYED: Final = ("class_token", "pos_embedding", "relative_position_bias_table")  # timm's transformers name theirs
UNREADABLE: Final = "mnasnet"  # these tell old files by what is no tensor, and neither safetensors nor we keep that
DENSE_LAYER: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as the files of DenseNets have it


class Published(NamedTuple):
    """What the weights that torchvision publishes for a network were trained with."""

    classes: int
    size: int  # side of the square input, pixels
    mean: Channels
    std: Channels
    interpolation: str


def names() -> list[str]:
    """Return the names of the networks that classify images."""
    found = torchvision.models.list_models(module=torchvision.models)
    return [f"{PREFIX}{name}" for name in found if not name.startswith(UNREADABLE)]


def published(name: str) -> Published:
    """Return what a network's newest published weights were trained with."""
    weights = _weights(name)
    said = weights.transforms()
    size, mean, std = said.crop_size[0], tuple(said.mean), tuple(said.std)
    return Published(len(weights.meta["categories"]), size, mean, std, said.interpolation.value)


def create(name: str, classes: int, img_size: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """Return a network, on the meta device where that is the default one.

    `img_size` is for those that are built for one size of image; None: the published weights'. With published weights
    the head is new for another number of classes. Raises what torchvision does where they cannot be had.
    """
    plain, expects = name.removeprefix(PREFIX), published(name)
    side = img_size or expects.size
    options: dict[str, Any] = {"num_classes": classes}
    if plain.startswith("vit_"):
        options["image_size"] = side
    elif plain.startswith("maxvit_"):
        options["input_size"] = (side, side)
    elif plain in ("googlenet", "inception_v3"):
        options |= INCEPTIONS
    is_empty = torch.get_default_device().type == "meta"
    # some compute their widths with tensors, which must have values
    with torch.device("cpu"), init_empty_weights(include_buffers=False) if is_empty else nullcontext():
        net: Any = torchvision.models.get_model(plain, **options)
    heads = [(part, layer) for part, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    head, layer = heads[-1]
    net.num_features = layer.weight.shape[1]
    net.pretrained_cfg = {"classifier": head, "num_classes": classes, "input_size": (3, side, side),
                          "mean": expects.mean, "std": expects.std}  # fmt: skip
    undecayed = {parameter for parameter, _ in net.named_parameters() if parameter.endswith(UNDECAYED)}
    net.no_weight_decay = lambda: undecayed
    if pretrained:
        _load_published(net, name, head, side)
    built: nn.Module = net.to("meta") if is_empty else net
    return built


def _load_published(net: Any, name: str, head: str, side: int) -> None:
    """Give a network its published weights, but for a head of other classes and for second heads."""
    # the name of their file holds its hash, and nothing in it is executed
    held = _weights(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    tensors: Any = {DENSE_LAYER.sub(r"\1\2", part): value for part, value in held.items()}
    if isinstance(net, VisionTransformer):
        tensors = interpolate_embeddings(side, net.patch_size, tensors)
    expected = net.state_dict()
    new = {part for part in expected if part.startswith(f"{head}.") and tensors[part].shape != expected[part].shape}
    net.load_state_dict({part: value for part, value in tensors.items() if part in expected and part not in new}
                        | {part: expected[part] for part in new})  # fmt: skip


def _weights(name: str) -> Any:
    kinds: Any = torchvision.models.get_model_weights(name.removeprefix(PREFIX))
    return kinds.DEFAULT
