"""The frozen prefix of a network: what comes before the first layer that is trained, and what follows it.

Where nothing of a view is drawn, the prefix gives the same of an image in every epoch and in every run that starts from
the same weights: it is computed once, and kept (`pipeline/data/rows.py`).

Shapes: B images, S side of an image, ... of what goes into the suffix of one image (a row).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from accelerate import Accelerator
from timm.layers import DropPath
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.config import Precision, Recipe, identity, view_fields
from pipeline.data.batch import Batch
from pipeline.data.rows import Rows
from pipeline.fingerprints import DATA, VIEWS, weights_sha256
from pipeline.library_internals import batch_norms
from pipeline.model.finetune import frozen_modules
from shards.errors import BadRequest

WEIGHTS: Final = "weights of the prefix"
DEPENDS_ON: Final = ("model.name", "model.heads")  # beside fields of views; the rest is seen in shapes of weights


class Cut(NamedTuple):
    """Where a network is cut in two."""

    at: str  # the module that what is kept goes into
    suffix: tuple[str, ...]  # that module and what follows it, in order
    shape: tuple[int, ...]  # of a row


class _Reached(Exception):
    """The pass has come to the cut."""


def cut_of(net: nn.Module, size: int) -> Cut:
    """Return where a network, on the meta device, is cut: before the first module that has a trained parameter.

    Of a ViT that is a block, the final norm, or the head; of another network its head, where that is the end of it.
    Raises BadRequest where it is not, or where the prefix draws something itself.
    """
    net.eval()
    image = torch.empty(1, 3, size, size, device="meta")
    children = [name for name, _ in net.named_children()]
    trained = [name for name, part in net.named_children() if any(p.requires_grad for p in part.parameters())]
    if isinstance(net, VisionTransformer) and trained != ["head"]:
        blocks = [f"blocks.{number}" for number in range(len(net.blocks))]
        suffix = [*blocks, *children[children.index("blocks") + 1 :]]
        first = next((name for name in blocks if any(p.requires_grad for p in net.get_submodule(name).parameters())),
                     "norm")  # fmt: skip
        suffix = suffix[suffix.index(first) :]
    else:
        suffix = trained
        if "blocks" in trained or not _ends_with(net, trained, image):
            raise BadRequest.of(
                "finetune.cache",
                f"--finetune.cache does not fit {type(net).__name__}: what follows its frozen part cannot be computed "
                f"alone. It fits timm's ViTs, and networks that end with the head that is trained.",
            )
    still = {part for module in [*frozen_modules(net), *map(net.get_submodule, suffix)] for part in module.modules()}
    norms = set(batch_norms(net))
    drawing = [name for name, part in net.named_modules() if part not in still and (part in norms or _draws(part))]
    if drawing:
        raise BadRequest.of(
            "finetune.cache",
            f"--finetune.cache does not fit {type(net).__name__} here: before what is trained, {', '.join(drawing)} "
            f"gives something else of an image each time. Where that is dropout, take --model.dropout 0.",
        )
    return Cut(suffix[0], tuple(suffix), tuple(prefix(net, image, suffix[0]).shape[1:]))


def _ends_with(net: nn.Module, parts: list[str], image: Tensor) -> bool:
    """Return whether what a network gives is what its `parts` make, one after the other, of what goes into the first.

    That is so where each takes the very tensor that the one before it gave, and the last one's is the network's.
    """
    passed: list[tuple[str, Any, Any, Any]] = []
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, given, named, made, name=name: passed.append((name, given, named, made)), with_kwargs=True
        )
        for name in parts
    ]
    output = net(image)
    for hook in hooks:
        hook.remove()
    return (
        [name for name, *_ in passed] == parts
        and all(len(given) == 1 and not named for _, given, named, _ in passed)
        and all(after[1][0] is before[3] for before, after in pairwise(passed))
        and output is passed[-1][3]
    )


def _draws(module: nn.Module) -> bool:
    """Return whether a module drops something of an image as it trains."""
    match module:
        case nn.Dropout(p=rate) | StochasticDepth(p=rate) | DropPath(drop_prob=rate):
            return bool(rate)
    return False


def prefix(net: nn.Module, images: Tensor, at: str) -> Tensor:
    """Return what goes into the module `at`, [B, ...], of normalised images [B, 3, S, S]; no further is computed."""
    taken: list[Tensor] = []

    def take(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        taken.append(given[0])
        raise _Reached

    hook = net.get_submodule(at).register_forward_pre_hook(take)
    try:
        net(images)
    except _Reached:
        return taken[0]
    finally:
        hook.remove()
    raise AssertionError(f"{at} lies on the way of every image")


def suffix(net: Any, rows: Tensor, cut: Cut) -> Tensor:
    """Return the logits [B, C] of rows [B, ...]."""
    if isinstance(net, VisionTransformer) and cut.at != "head":
        blocks = [net.get_submodule(name) for name in cut.suffix if name.startswith("blocks.")]
        if net.grad_checkpointing and blocks:
            rows = checkpoint_seq(blocks, rows)
        else:
            for block in blocks:
                rows = block(rows)
        logits: Tensor = net.forward_head(net.norm(rows))
        return logits
    for name in cut.suffix:
        rows = net.get_submodule(name)(rows)
    return rows


def prefix_fingerprint(
    recipe: Recipe, fingerprints: Mapping[str, str | None], precision: Precision, weights: str | None = None
) -> dict[str, Any]:
    """Return what rows depend on; `weights` is the hash of the prefix's, where they are known (`prefix_sha256`)."""
    views = {name: value for name, value in view_fields(recipe).items() if name.startswith(("model.", "augment."))}
    model = {name: identity(recipe)[name] for name in DEPENDS_ON}
    return {**views, **model, "precision": precision, DATA: fingerprints[DATA], VIEWS: fingerprints[VIEWS],
            WEIGHTS: weights}  # fmt: skip


def prefix_sha256(net: nn.Module, cut: Cut) -> str:
    """Return the hash of the weights before a cut."""
    after = tuple(f"{name}." for name in cut.suffix)
    return weights_sha256({name: value for name, value in net.state_dict().items() if not name.startswith(after)})


class PrefixOutputs:
    """What the prefix of a network gives of a run's batches: computed, and kept, where no loader worker found it."""

    def __init__(self, net: nn.Module, cut: Cut, rows: Rows, layout: torch.memory_format, accelerator: Accelerator):
        self._net, self._cut, self._rows, self._layout = net, cut, rows, layout
        self._autocast = accelerator.autocast

    def of(self, batch: Batch, images: Tensor, most: int) -> Tensor:
        """Return the rows [B, ...] of a batch, `images` [B, 3, S, S] as the model sees them, on their device.

        At most so many images pass at a time. A row that is there by now is taken as it is, so that a step that is done
        again after a kill sees the same bits. Those of a batch with replaced samples are not kept: they are of others.
        The host waits for the device, once for each image.
        """
        with torch.no_grad(), self._autocast(), torch.compiler.set_stance("force_eager"):
            parts = images.contiguous(memory_format=self._layout).split(most)
            made = torch.cat([prefix(self._net, part, self._cut.at) for part in parts]).float()
        if batch.replaced:
            return made
        kept, there = self._rows.read(batch.samples)
        computed = made.cpu().numpy()
        self._rows.write(batch.samples[~there], computed[~there])
        kept[~there] = computed[~there]
        return torch.from_numpy(kept).to(images.device)
