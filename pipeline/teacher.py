"""The teacher: a frozen model that sees the student's views, and its answers, asked for or stored.

An answer is kept in the same form whether it is stored or not, so a student ends with the same weights either way.
Shapes: B images, C classes, k kept classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor, nn

from pipeline.batch import Batch
from pipeline.checkpoint import file_sha256
from pipeline.config import A_RUN, Distill, Model, Recipe
from pipeline.models import has_fixed_size, load_weights
from pipeline.store import Store
from shards.errors import BadRequest

LEAST = 1e-8  # probability: what a kept distribution leaves nothing for is not impossible


class Input(NamedTuple):
    """What a model takes: square images of a size in pixels, with channels of this mean and deviation in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Teacher(nn.Module):
    """A frozen model that answers for views as the student's `Model` takes them."""

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


class Answers:
    """The answers of a recipe's teacher for its batches; the teacher is built when the first one is missing."""

    def __init__(
        self,
        recipe: Recipe,
        build: Callable[[], Teacher],
        store: Store | None,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.recipe = recipe
        self.teacher: Teacher | None = None
        self._build = build
        self.store = store
        self._autocast = autocast
        self._sent: list[tuple[int, int, Tensor, torch.Event | None]] = []  # place, virtual rank, records

    def of(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the answers for a batch, `images` [B, 3, S, S] as the student sees it, on their device.

        Hard: classes, int64 [B].  Soft: log-probabilities, float32 [B, C].
        """
        distill, classes = self.recipe.distill, self.recipe.data.classes
        if self.store:
            stored = self.store.read(batch.place, batch.virtual_rank)
            if stored is not None:
                records = torch.from_numpy(stored.astype("int64")).to(images.device, non_blocking=True)
                return recall(records, classes, distill)
        logits = self._ask(images)
        if distill.loss == "soft" and not distill.top:
            return logits.log_softmax(1)
        records = keep(logits, distill)
        if self.store:
            self._send(batch, records)
        return recall(records, classes, distill)

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Tensor:
        if self.teacher is None:
            self.teacher = self._build()
        size = self.recipe.micro_batch or len(images)
        with self._autocast():
            return torch.cat([self.teacher(part).float() for part in images.split(size)])

    def _send(self, batch: Batch, records: Tensor) -> None:
        """Have records copied to the host, and store those of the batch before, which are long there."""
        copied = None
        on_host = records.to("cpu", non_blocking=True)
        if records.device.type == "cuda":
            copied = torch.Event("cuda")
            copied.record()
        self.flush()
        self._sent.append((batch.place, batch.virtual_rank, on_host, copied))

    def flush(self) -> None:
        """Store what was asked for."""
        for place, rank, records, copied in self._sent:
            if copied:
                copied.synchronize()
            assert self.store
            self.store.write(place, rank, records.numpy().astype("uint16"))
        self._sent.clear()


def keep(logits: Tensor, distill: Distill) -> Tensor:
    """Return what is kept of logits [B, C] (`pipeline/store.py`), 16 bits in int64: [B, 1], or soft [B, 2k]."""
    if distill.loss == "hard":
        return logits.argmax(1, keepdim=True) + 1
    probabilities, classes = logits.softmax(1).topk(distill.top)
    return torch.cat([probabilities.half().view(torch.int16).long(), classes], 1)


def recall(records: Tensor, classes: int, distill: Distill) -> Tensor:
    """Return the answers that were kept: classes int64 [B], or log-probabilities float32 [B, C].

    What the kept probabilities leave of one is spread evenly over the other classes (TinyViT, 2207.10666).
    """
    if distill.loss == "hard":
        return records[:, 0] - 1
    bits, kept = records.split(distill.top, 1)
    probabilities = bits.to(torch.int16).view(torch.half).float()
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp_min(0) / max(classes - distill.top, 1)
    return rest.expand(-1, classes).scatter(1, kept, probabilities).clamp_min(LEAST).log()


def build_teacher(recipe: Recipe) -> Teacher:
    """Return the teacher of a recipe with its weights, on the CPU.  Raises BadRequest where they cannot be had."""
    distill = recipe.distill
    net = _create(distill, recipe.data.classes, weights=not distill.checkpoint)
    if distill.checkpoint:
        load_weights(net, distill.checkpoint, "--distill.checkpoint")
    return Teacher(net.to(memory_format=torch.channels_last), _input(net, distill), recipe.model)


def check_teacher(recipe: Recipe) -> None:
    """Raise BadRequest if the teacher does not fit the recipe, as far as can be told without its weights' memory."""
    distill, classes = recipe.distill, recipe.data.classes
    if distill.teacher.startswith(A_RUN):
        folder = Path(distill.teacher.removeprefix(A_RUN))
        if not all((folder / name).is_file() for name in ("config.json", "model.safetensors")):
            raise BadRequest([f"--distill.teacher {distill.teacher}: {folder} is not the folder of a finished run."])
    with torch.device("meta"):
        net = _create(distill, classes, weights=False)
    if distill.checkpoint:
        load_weights(net, distill.checkpoint, "--distill.checkpoint")
        return
    if distill.teacher.startswith("torchvision:"):
        taught = len(_published(distill).meta["categories"])
    else:
        config: Any = net.pretrained_cfg
        taught = config["num_classes"]
        if not any(config.get(source) for source in ("hf_hub_id", "url", "file")):
            raise BadRequest([f"--distill.checkpoint is missing: no weights are published for {distill.teacher}."])
    if taught != classes:
        raise BadRequest([f"--distill.teacher {distill.teacher} knows {taught} classes, the recipe has {classes}."])


def write_random_weights(recipe: Recipe, path: Path) -> None:
    """Write weights that a recipe's teacher never learnt: they do for a rehearsal, and for timing."""
    save_file(_create(recipe.distill, recipe.data.classes, weights=False).state_dict(), path)


def teacher_weights(distill: Distill) -> str:
    """Return what tells the teacher's weights from others: the hash of their file, or that they are the published."""
    if distill.checkpoint:
        return file_sha256(Path(distill.checkpoint))
    if distill.teacher.startswith(A_RUN):
        return file_sha256(Path(distill.teacher.removeprefix(A_RUN)) / "model.safetensors")
    return "published"


def _create(distill: Distill, classes: int, *, weights: bool) -> nn.Module:
    name = distill.teacher
    try:
        options: dict[str, Any]
        if name.startswith("torchvision:"):
            options = {"weights": "DEFAULT"} if weights else {"num_classes": classes}
            net: nn.Module = torchvision.models.get_model(name.removeprefix("torchvision:"), **options)
            return net
        fixed = not name.startswith(A_RUN) and has_fixed_size(name)
        options = {"img_size": distill.img_size} if distill.img_size and fixed else {}
        net = timm.create_model(name, pretrained=weights, num_classes=classes, **options)
    except (TypeError, ValueError, AssertionError, OSError, RuntimeError) as error:
        raise BadRequest([f"--distill.teacher {name}: cannot be had ({error})."]) from error
    return net


def _published(distill: Distill) -> Any:
    """Return the weights that torchvision publishes for the teacher, as its enum describes them."""
    kinds: Any = torchvision.models.get_model_weights(distill.teacher.removeprefix("torchvision:"))
    return kinds.DEFAULT


def _input(net: nn.Module, distill: Distill) -> Input:
    """Return what the teacher takes: as the request says, else as its weights were trained."""
    if distill.teacher.startswith("torchvision:"):
        presets = _published(distill).transforms()
        own = Input(presets.crop_size[0], tuple(presets.mean), tuple(presets.std))
    else:
        config = resolve_data_config(model=net)
        own = Input(config["input_size"][-1], config["mean"], config["std"])
    return Input(distill.img_size or own.size, distill.mean or own.mean, distill.std or own.std)
