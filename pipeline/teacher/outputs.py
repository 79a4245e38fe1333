"""Teacher outputs for a run's batches: asked for, or read from a store.

An output is kept in the same form whether it is stored or not, so a student ends with the same weights either way.
Shapes: B images, C classes, k kept classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.config import Distill, Recipe
from pipeline.data.batch import Batch
from pipeline.data.order import Order
from pipeline.devices import Sent, to_host
from pipeline.model.student import compile_blocks
from pipeline.teacher.store import Store
from pipeline.teacher.teacher import Teacher, build_teacher

LEAST: Final = 1e-8  # probability: what a kept distribution leaves nothing for is not impossible


class TeacherOutputs:
    """What a recipe's teacher says of its batches; the teacher is built when the first output is missing."""

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
        self._sent: list[tuple[int, int, Sent]] = []  # step of the order, virtual rank, records

    def of(self, batch: Batch, images: Tensor, most: int) -> Tensor:
        """Return the outputs for a batch, `images` [B, 3, S, S] as the student sees it, on their device.

        At most so many images pass at a time.

        Hard: classes, int64 [B].  Soft: log-probabilities, float32 [B, C].
        Those of a batch with replaced samples are not stored: once these are mended, its views are others.
        """
        distill, classes = self.recipe.distill, self.recipe.data.classes
        stores = self.store is not None and not batch.replaced
        if self.store and stores:
            stored = self.store.read(batch.order_step, batch.virtual_rank)
            if stored is not None:
                records = torch.from_numpy(stored.astype("int64")).to(images.device, non_blocking=True)
                return from_records(records, classes, distill)
        logits = self._ask(images, most)
        if distill.loss == "soft" and not distill.top:
            return logits.log_softmax(1)
        records = to_records(logits, distill)
        if stores:
            self._send(batch, records)
        return from_records(records, classes, distill)

    def _ask(self, images: Tensor, most: int) -> Tensor:
        """Return the teacher's logits, float32 [B, C], made in inference mode, as tensors that a loss may keep."""
        if self.teacher is None:
            self.teacher = self._build()
        with torch.inference_mode(), self._autocast():
            logits = [self.teacher(part).float() for part in images.split(most)]
        return torch.cat(logits)

    def _send(self, batch: Batch, records: Tensor) -> None:
        """Have records copied to the host, and store those of the batch before, which are long there."""
        sent = to_host(records)
        self.flush()
        self._sent.append((batch.order_step, batch.virtual_rank, sent))

    def flush(self) -> None:
        """Store what was asked for."""
        for order_step, rank, records in self._sent:
            assert self.store
            self.store.write(order_step, rank, records.arrived().numpy().astype("uint16"))
        self._sent.clear()


def open_outputs(
    recipe: Recipe,
    order: Order,
    store_fingerprint: dict[str, Any],
    accelerator: Accelerator,
    *,
    compiled: bool,
) -> TeacherOutputs:
    """Return the outputs of a recipe's teacher: with a store, where the recipe names one."""
    distill = recipe.distill
    store = None
    if distill.store:
        store = Store(Path(distill.store), order, 2 * distill.top or 1, store_fingerprint)

    def build() -> Teacher:
        teacher = build_teacher(recipe).to(accelerator.device)
        if compiled:
            compile_blocks(teacher.net)
        return teacher

    return TeacherOutputs(recipe, build, store, accelerator.autocast)


def to_records(logits: Tensor, distill: Distill) -> Tensor:
    """Return what is kept of logits [B, C] (`pipeline/teacher/store.py`), 16 bits in int64: [B, 1], or soft [B, 2k]."""
    if distill.loss == "hard":
        return logits.argmax(1, keepdim=True) + 1
    probabilities, classes = logits.softmax(1).topk(distill.top)
    return torch.cat([probabilities.half().view(torch.int16).long(), classes], 1)


def from_records(records: Tensor, classes: int, distill: Distill) -> Tensor:
    """Return the outputs that were kept: classes int64 [B], or log-probabilities float32 [B, C].

    What the kept probabilities leave of one is spread evenly over the other classes (TinyViT, 2207.10666).
    """
    if distill.loss == "hard":
        return records[:, 0] - 1
    bits, kept = records.split(distill.top, 1)
    probabilities = bits.to(torch.int16).view(torch.half).float()
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp_min(0) / max(classes - distill.top, 1)
    return rest.expand(-1, classes).scatter(1, kept, probabilities).clamp_min(LEAST).log()
