"""Weights of others: read without executing anything, and by the names of the model that takes them."""

from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
from timm.models import VGG, VisionTransformer, load_state_dict
from torch import Tensor, nn

from pipeline.fields import written
from pipeline.library_internals import vgg_names, vit_names
from shards.errors import BadRequest


def load_weights(net: nn.Module, path: str, field: str, new_heads: tuple[str, ...] = ()) -> None:
    """Give a model the weights of a file: safetensors, or a state dict of torch.save, never unpickled further.

    Wrappers' prefixes are taken off, position embeddings resized to the model's grid (bicubic, DeiT section 6), and
    `new_heads` left as they are. Raises BadRequest, speaking of the recipe's `field`, with the tensors that do not fit.
    """
    option = written(field, path)
    if not Path(path).is_file():
        raise BadRequest.of(field, f"{option}: no such file.")
    try:
        tensors = as_timm_names_them(load_state_dict(path, use_ema=False), net)
    except (OSError, RuntimeError, ValueError, AttributeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise BadRequest.of(field, f"{option}: not a file of weights alone ({reason})") from error
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
        raise BadRequest.of(field, f"{option}: these weights are of another model or other classes: {shown}.")
    # a model without memory of its own is only checked: it takes the file's tensors as they are
    net.load_state_dict(tensors, assign=any(value.is_meta for value in expected.values()))


def as_timm_names_them(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return weights made elsewhere by the names of the timm model that takes them, by timm's own rules."""
    if isinstance(net, VisionTransformer):
        return vit_names(tensors, net)
    if isinstance(net, VGG):
        return vgg_names(tensors)
    return tensors  # a ResNet's names are torchvision's
