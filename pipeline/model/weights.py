"""Weights of others: taken out of what they are wrapped in, and called as the model that takes them calls them.

What is found is said in words, and so is what is left out; what does not fit is refused by name, with the flag that
goes on where there is one. How the bytes are read is in `pipeline/model/weights_file.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VGG, VisionTransformer, VisionTransformerDistilled
from torch import Tensor, nn

from pipeline.fields import written
from pipeline.library_internals import vgg_names, vit_names
from pipeline.model.weights_file import NoWeights, file_of, read_file
from shards.errors import BadRequest

AVERAGES: Final = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict", "ema_model")
# under what trainers keep weights, in the order in which they are taken: of DINO the teacher, as its authors do
KEPT_UNDER: Final = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
    *("teacher", "student"),
    *AVERAGES,
)
SECOND_CHOICE: Final = re.compile(r"ema|average|momentum|student|target")  # of two towers of the same names

# what hangs on a backbone while it is trained without labels, and counters: no classifier has them
LEFT_OUT: Final = re.compile(
    r"(decoder\w*|mask_token|head\.(mlp|last_layer)|pooler|projection_head|prediction_head|predictor|projector"
    r"|(.+\.)?(total_ops|total_params|num_batches_tracked))(\.|$)"
)


PATCHES: Final = "patch_embed.proj.weight"


class Layout(NamedTuple):
    """How a library calls the tensors of a ViT: a name that tells it, and what becomes of its names, in this order."""

    library: str
    sign: str
    names: Mapping[str, str]


LAYOUTS: Final = (
    Layout(
        "torchvision",
        "conv_proj.weight",
        {
            r"conv_proj\.": "patch_embed.proj.",
            r"class_token$": "cls_token",
            r"encoder\.pos_embedding$": "pos_embed",
            r"encoder\.layers\.encoder_layer_": "blocks.",
            r"\.ln_([12])\.": r".norm\1.",
            r"\.self_attention\.in_proj_": ".attn.qkv.",
            r"\.self_attention\.out_proj\.": ".attn.proj.",
            r"\.mlp\.(0|linear_1)\.": ".mlp.fc1.",
            r"\.mlp\.(3|linear_2)\.": ".mlp.fc2.",
            r"encoder\.ln\.": "norm.",
            r"heads\.head\.": "head.",
        },
    ),
    Layout(
        "transformers",
        "embeddings.patch_embeddings.projection.weight",
        {
            r"(^|\.)(vit|deit)\.": r"\1",
            r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
            r"embeddings\.position_embeddings$": "pos_embed",
            r"embeddings\.distillation_token$": "dist_token",
            r"embeddings\.(cls_token|mask_token)$": r"\1",
            r"encoder\.layer\.": "blocks.",
            r"\.attention\.attention\.(query|key|value)\.": r".attn.\1.",
            r"\.attention\.output\.dense\.": ".attn.proj.",
            r"\.layernorm_before\.": ".norm1.",
            r"\.layernorm_after\.": ".norm2.",
            r"\.intermediate\.dense\.": ".mlp.fc1.",
            r"\.output\.dense\.": ".mlp.fc2.",
            r"(^|\.)layernorm\.": r"\1norm.",
            r"(^|\.)(cls_)?classifier\.": r"\1head.",
            r"(^|\.)distillation_classifier\.": r"\1head_dist.",
        },
    ),
    Layout(
        "mmpretrain",
        "patch_embed.projection.weight",
        {
            r"(^|\.)backbone\.": r"\1",
            r"patch_embed\.projection\.": "patch_embed.proj.",
            r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
            r"\.ffn\.layers\.1\.": ".mlp.fc2.",
            r"(^|\.)layers\.(\d+)\.": r"\1blocks.\2.",
            r"(blocks\.\d+)\.ln([12])\.": r"\1.norm\2.",
            r"(^|\.)ln1\.": r"\1norm.",
            r"(^|\.)head\.layers\.head\.": r"\1head.",
        },
    ),
)


class Found(NamedTuple):
    """Tensors by name, and what is to be said of how they were found."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    def changed(self, tensors: dict[str, Tensor], *notes: str) -> "Found":
        """Return other tensors, and with what was said what is said now."""
        return Found(tensors, (*self.notes, *(note for note in notes if note)))


def load_weights(net: nn.Module, path: str, field: str, heads: tuple[str, ...] = (), *, new_heads: bool = False) -> str:
    """Give a model the weights of a file or of a folder that has one, and return what was found, in words.

    Position embeddings are resized to the model's grid (see `with_positions_of`). With `new_heads`, the model's `heads`
    stay as they are. Raises BadRequest, speaking of the recipe's `field`, with the tensors that do not fit.
    """
    option, file = written(field, path), file_of(path)
    try:
        found = named_as_in(net, unwrapped(read_file(file)))
        if isinstance(net, VisionTransformer):
            found = _with_tokens(found, net, heads, new_heads=new_heads)
            found = _with_positions(found, net)
    except NoWeights as error:
        raise BadRequest.of(field, f"{option}: {error}") from error
    expected = net.state_dict()
    left_out = {name for name in found.tensors.keys() - expected.keys() if LEFT_OUT.match(name)}
    if new_heads:
        left_out |= {name for name in found.tensors if _under(name, heads)}
        found = found.changed(found.tensors, f"{' and '.join(heads)} new")
    tensors = {name: value for name, value in found.tensors.items() if name not in left_out}
    if new_heads:
        tensors |= {name: value for name, value in expected.items() if _under(name, heads)}
    if wrong := dict(_misfits(tensors, expected)):
        shown = "; ".join(sorted(wrong.values())[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        # where the heads alone do not fit
        way_on = " To go on with new heads: --model.new-head" if all(_under(name, heads) for name in wrong) else ""
        raise BadRequest.of(field, f"{option}: these weights are of another model or other classes: {shown}.{way_on}")
    # a model without memory of its own is only checked: it takes the file's tensors as they are
    net.load_state_dict(tensors, assign=any(value.is_meta for value in expected.values()))
    said = found.changed(tensors, _said_of_left_out(left_out), _said_of_types(tensors.values()))
    return f"{file}: {'; '.join(said.notes) or 'all as the model has it'}"


def unwrapped(held: Any) -> Found:
    """Return the tensors that a file holds by name, out of what trainers wrap them in.  Raises NoWeights for none."""
    notes: tuple[str, ...] = ()
    while isinstance(held, Mapping):
        under = [name for name in KEPT_UNDER if isinstance(held.get(name), Mapping) and held[name]]
        if not under:
            break
        taken, *others = (f"`{name}`" for name in under)
        notes += (f"{taken} of the file" + (f" is taken, not {', '.join(others)}" if others else ""),)
        held = held[under[0]]
    entries = held if isinstance(held, Mapping) else {}
    tensors = {str(name): value.detach() for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        known = ", ".join(map(str, list(entries)[:8])) or type(held).__name__
        raise NoWeights(f"holds no tensors by name ({known}); save a state dict of the model itself.")
    return Found(tensors, notes)


def named_as_in(net: nn.Module, found: Found) -> Found:
    """Return weights by the names of the model that takes them; parts that hang beside it are left out."""
    if isinstance(net, VisionTransformer):
        found = _vit_of_others(found)
        if "visual.class_embedding" in found.tensors:  # CLIP's, for which timm has rules of its own
            return found
    names = net.state_dict().keys()
    prefix = _prefix(found.tensors, names)
    taken = {name.removeprefix(prefix): value for name, value in found.tensors.items() if name.startswith(prefix)}
    others = [name for name in found.tensors if not name.startswith(prefix)]
    found = found.changed(taken, f"under `{prefix[:-1]}`" if prefix else "", _said_of_left_out(others))
    return found.changed(vgg_names(taken)) if isinstance(net, VGG) else found


def _prefix(tensors: Collection[str], names: Collection[str]) -> str:
    """Return what stands before the most of a model's names, of two towers the one that is trained; most often nothing.

    So every wrapper is known without a list of them: those of DDP, torch.compile, Lightning, of a backbone in a
    method.
    """
    counts = Counter({"": 0})
    for name in tensors:
        parts = name.split(".")
        counts.update(
            "".join(f"{part}." for part in parts[:k]) for k in range(len(parts)) if ".".join(parts[k:]) in names
        )
    return max(counts, key=lambda prefix: (counts[prefix], not SECOND_CHOICE.search(prefix), -len(prefix)))


def _vit_of_others(found: Found) -> Found:
    """Return a ViT's tensors by timm's names, where another library gave them theirs; a prefix stays."""
    for name in found.tensors:
        prefix = name.removesuffix("class_embedding")
        if prefix != name and f"{prefix}transformer.resblocks.0.ln_1.weight" in found.tensors:
            tower = {key: value for key, value in found.tensors.items() if key.startswith(prefix)}
            others = found.tensors.keys() - tower.keys()
            tensors = {f"visual.{key.removeprefix(prefix)}": value for key, value in tower.items()}
            return found.changed(tensors, "image tower of CLIP", _said_of_left_out(others))
    for layout in LAYOUTS:
        if any(f".{name}".endswith(f".{layout.sign}") for name in found.tensors):
            tensors = {_renamed(name, layout.names): value for name, value in found.tensors.items()}
            found = found.changed(tensors, f"names of {layout.library}")
    return found.changed(_with_one_qkv(found.tensors))


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _with_one_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with query, key and value as one, as timm has them; BEiT's keys have no bias."""
    fused = dict(tensors)
    for name in tensors:
        attention, _, part = name.rpartition("attn.")
        if part in ("query.weight", "query.bias"):
            kind = part.removeprefix("query.")
            parts = [fused.pop(f"{attention}attn.{which}.{kind}", None) for which in ("query", "key", "value")]
        elif part == "q_bias":
            kind, query = "bias", fused.pop(name)
            parts = [query, torch.zeros_like(query), fused.pop(f"{attention}attn.v_bias", None)]
        else:
            continue
        fused[f"{attention}attn.qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
    return fused


def _with_tokens(found: Found, net: VisionTransformer, heads: tuple[str, ...], *, new_heads: bool) -> Found:
    """Leave a distillation token out that the model lacks, or start the model's own with its heads.

    Raises NoWeights for a model whose token is not in the file, where its heads are not new.
    """
    tensors, has_token = dict(found.tensors), isinstance(net, VisionTransformerDistilled)
    positions = tensors.get("pos_embed")
    if has_token == ("dist_token" in tensors) or positions is None:
        return found
    if not has_token:
        del tensors["dist_token"]
        tensors = {name: value for name, value in tensors.items() if not _under(name, ("head_dist",))}
        tensors["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        return found.changed(tensors, "the distillation token, its position and its head left out")
    if not new_heads:
        way_on = ", or start token, position and heads anew: --model.new-head" if heads else ""
        raise NoWeights(f"has no distillation token, which the model has; take a model without one{way_on}")
    own = net.state_dict()
    row = own["pos_embed"][:, 1:2]
    if row.shape[-1] == positions.shape[-1]:
        row = torch.zeros_like(row, device=positions.device) if row.is_meta else row
        tensors["pos_embed"] = torch.cat([positions[:, :1], row.to(positions.dtype), positions[:, 1:]], dim=1)
    return found.changed(tensors | {"dist_token": own["dist_token"]}, "the distillation token and its position new")


def _with_positions(found: Found, net: VisionTransformer) -> Found:
    """Return weights by timm's rules: position and patch embeddings resized, CLIP's and DINOv2's names changed.

    Raises NoWeights for positions of a grid whose sides nothing tells.
    """
    before = found.tensors.get("pos_embed")
    grid = net.patch_embed.grid_size
    if before is not None and net.pos_embed is not None and "register_tokens" not in found.tensors:
        tokens = 0 if net.no_embed_class else net.num_prefix_tokens
        count = before.shape[1] - tokens
        if count != math.prod(grid) and math.isqrt(max(count, 0)) ** 2 != count:
            raise NoWeights(
                f"pos_embed has {count} positions beside {tokens} tokens: no square grid, and not the model's "
                f"{grid[0]} x {grid[1]}; nothing says their sides. Resize them before, to a square."
            )
    tensors = with_positions_of(net, found.tensors)
    after = tensors.get("pos_embed")
    resized = before is not None and after is not None and before.shape != after.shape
    kernels = {held[PATCHES].shape[2:] for held in (found.tensors, tensors) if PATCHES in held}
    return found.changed(
        tensors,
        f"position embeddings resized to {grid[0]} x {grid[1]}" if resized else "",
        "patch embedding resized" if len(kernels) > 1 else "",
        "mask_token left out" if "mask_token" in found.tensors else "",
    )


def with_positions_of(net: VisionTransformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ViT's weights by timm's rules, position embeddings resized to the model's grid.

    Bicubic, without antialias: as DeiT's official code does (main.py), and its weights at 384 px were made.
    """
    own, positions = net.pos_embed, tensors.get("pos_embed")
    # with registers, timm's rules alone know which positions are a grid's
    if own is None or positions is None or "register_tokens" in tensors or own.shape[1] == positions.shape[1]:
        return vit_names(tensors, net)
    tokens = 0 if net.no_embed_class else net.num_prefix_tokens
    resized = resample_abs_pos_embed(positions, net.patch_embed.grid_size, num_prefix_tokens=tokens, antialias=False)
    return vit_names({**tensors, "pos_embed": resized}, net)


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterable[tuple[str, str]]:
    """Yield the name of each tensor that does not fit, and what is wrong with it."""
    for name in expected.keys() - tensors.keys():
        if not name.endswith("_tracked"):
            yield name, f"{name} is missing"
    for name in tensors.keys() - expected.keys():
        yield name, f"{name} is not in the model"
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name].shape:
            yield name, f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}"


def _under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _said_of_left_out(names: Collection[str]) -> str:
    parts = sorted({name.partition(".")[0] for name in names})
    shown = ", ".join(parts[:4]) + (", ..." if len(parts) > 4 else "")
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} left out ({shown})" if names else ""


def _said_of_types(tensors: Iterable[Tensor]) -> str:
    types = {str(value.dtype).removeprefix("torch.") for value in tensors if value.is_floating_point()} - {"float32"}
    return f"{' and '.join(sorted(types))}, taken as float32" if types else ""
