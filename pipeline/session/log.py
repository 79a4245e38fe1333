"""What a run writes for people and scripts: metrics.jsonl, TensorBoard, traces, the console.

One process writes the first two and speaks; every process writes its own trace. On resume, what lies beyond the
checkpoint is cut off (`RunFolder.rewind`), so that no curve has a point twice.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.config import Model
from pipeline.data.batch import Batch
from pipeline.folder import RunFolder, gone
from pipeline.library_internals import board_errors_raised_once
from shards.files import naming
from shards.index import Index
from shards.terminal import plain

PICTURES = 16  # images of the augmented batch that TensorBoard shows


class ImagesPerSecond(ProgressColumn):
    """Images a second of the last half a minute, by the steps of the bar; empty where none is known yet."""

    def render(self, task: Task) -> Text:
        """Return what stands in the bar."""
        return Text(f"{task.speed * task.fields['images']:,.0f} images/s" if task.speed else "")


class Log:
    """The log of a run, used as a context; process 0 is the one that writes the shared files and speaks."""

    def __init__(self, folder: RunFolder, *, step: int, last_step: int, process: int, trace: bool, quiet: bool) -> None:
        self.folder = folder
        self.main = main = process == 0
        self._console = Console(quiet=quiet or not main, highlight=False, soft_wrap=True)
        self._trace: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._board: SummaryWriter | None = None
        self._bar: Progress | None = None
        with ExitStack() as opened:
            if trace:
                folder.traces.mkdir(exist_ok=True)
                self._trace = opened.enter_context(folder.trace(process).open("a", buffering=1))
            if main:
                self._metrics = opened.enter_context(folder.metrics.open("a", buffering=1))
                opened.enter_context(board_errors_raised_once())
                with naming(folder.tensorboard):
                    self._board = SummaryWriter(folder.tensorboard, purge_step=step + 1)
                opened.callback(self._board.close)
            self._opened = opened.pop_all()
        if main and self._console.is_terminal and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            self._bar = Progress(
                *columns, ImagesPerSecond(), TimeRemainingColumn(), TextColumn("left"),
                console=self._console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("step", total=last_step, completed=step, images=0)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._opened.callback(self._bar.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with naming(self.folder.metrics):
                self._opened.close()
        except OSError:
            if error is None:  # what ended the run says more
                raise

    def say(self, text: str) -> None:
        """Print a line in the one process that speaks."""
        self._console.print(plain(text))
        sys.stdout.flush()

    def advance(self, step: int, images: int) -> None:
        """Move the progress bar, where there is one, by a step of so many images."""
        if self._bar:
            self._bar.update(self._task, completed=step, images=images)

    def record(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl, and its numbers to TensorBoard.  Raises OSError where it cannot."""
        if not self._metrics or not self._board:
            return
        if not self.folder.metrics.exists():  # a removed file that is open takes every line, and keeps none
            raise gone(self.folder.metrics)
        with naming(self.folder.metrics):
            self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **values}) + "\n")
        prefix = "/".join(str(values[name]) for name in ("split", "weights") if name in values) or kind
        with naming(self.folder.tensorboard):
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{prefix}/{name}", value, step)
            self._board.flush()

    def pictures(self, step: int, images: Tensor, model: Model) -> None:
        """Show an augmented batch [B, 3, S, S], as the model sees it, in TensorBoard."""
        if not self._board:
            return
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
        shown = (images[:PICTURES].float().cpu() * std + mean).clamp(0, 1)
        with naming(self.folder.tensorboard):
            self._board.add_images("train/augmented", shown, step)

    def trace(self, batch: Batch, index: Index) -> None:
        """Write which views a virtual rank sees at a step, if traces were asked for."""
        if self._trace:
            keys = [index.key(sample) for sample in batch.samples.tolist()]
            views = list(zip(keys, batch.copies.tolist(), strict=True))
            line = {"step": batch.step, "virtual_rank": batch.virtual_rank, "views": views}
            with naming(Path(self._trace.name)):
                self._trace.write(json.dumps(line) + "\n")
