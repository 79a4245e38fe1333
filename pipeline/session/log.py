"""What a run writes for people and scripts: metrics.jsonl, TensorBoard and other trackers, traces, the console.

One process writes the first of them and speaks; every process writes its own trace. On resume, what lies beyond the
checkpoint is cut off (`RunFolder.rewind`), so that no curve has a point twice.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import nn

from pipeline.config import Recipe, identity
from pipeline.data.batch import Batch
from pipeline.folder import RunFolder, gone
from pipeline.library_internals import board_errors_raised_once
from pipeline.session.board import Board
from pipeline.session.drawing import captioned
from pipeline.trackers import TENSORBOARD, Trackers, names
from shards.files import naming
from shards.index import Index
from shards.terminal import plain


class ImagesPerSecond(ProgressColumn):
    """Images a second of the last half a minute, by the steps of the bar; empty where none is known yet."""

    def render(self, task: Task) -> Text:
        """Return what stands in the bar."""
        return Text(f"{task.speed * task.fields['images']:,.0f} images/s" if task.speed else "")


class Log:
    """The log of a run, used as a context; process 0 is the one that writes the shared files and speaks."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        step: int,
        last_step: int,
        process: int,
        trace: bool,
        quiet: bool,
        trackers: str = TENSORBOARD,
    ) -> None:
        self.folder = folder
        self.main = main = process == 0
        self._console = Console(quiet=quiet or not main, highlight=False, soft_wrap=True)
        self._trace: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._board: Board | None = None
        self._trackers: Trackers | None = None
        self._bar: Progress | None = None
        with ExitStack() as opened:
            if trace:
                folder.traces.mkdir(exist_ok=True)
                self._trace = opened.enter_context(folder.trace(process).open("a", buffering=1))
            if main:
                self._metrics = opened.enter_context(folder.metrics.open("a", buffering=1))
                opened.enter_context(board_errors_raised_once())
                if TENSORBOARD in names(trackers):
                    self._board = Board(folder.board, step)
                    opened.callback(self._board.close)
                self._trackers = Trackers(trackers, folder)
                opened.callback(self._trackers.close)
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
        """Write one line of metrics.jsonl, and its numbers to the trackers.  Raises OSError where it cannot."""
        if not self._metrics or not self._trackers:
            return
        if not self.folder.metrics.exists():  # a removed file that is open takes every line, and keeps none
            raise gone(self.folder.metrics)
        with naming(self.folder.metrics):
            self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **values}) + "\n")
        weights = str(values.get("weights", ""))
        numbers = dict(numbers_of(values, str(values.get("split", kind))))
        if self._board:
            self._board.scalars(numbers, step, weights)
        named = {f"{tag}/{weights}" if weights else tag: number for tag, number in numbers.items()}
        self._trackers.scalars(named, step)

    def describe(self, recipe: Recipe, split: str | None) -> None:
        """Tell the trackers of the recipe, and by which numbers its runs are compared: those on a split."""
        said = {name: value if isinstance(value, bool | int | float) else str(value)
                for name, value in identity(recipe).items() if value is not None}  # fmt: skip
        if self._board:
            weights = ("raw", "ema") if recipe.ema.decay else ("raw",)
            self._board.describe(said, dict.fromkeys(weights, f"{split}/top1") if split else {})
        if self._trackers:
            self._trackers.describe(said)

    def finished(self) -> None:
        """Tell TensorBoard that the run is done."""
        if self._board:
            self._board.end()

    @property
    def shows(self) -> bool:
        """Whether this process shows pictures and histograms to anybody: there is no need to make them, else."""
        return self._board is not None

    def pictures(
        self, tag: str, step: int, images: NDArray[np.uint8], captions: Sequence[str], columns: int = 4
    ) -> None:
        """Show images [B, S, S, 3] above their captions in TensorBoard."""
        if self._board and len(images):
            self._board.picture(tag, captioned(images, captions, columns), step)

    def picture(self, tag: str, step: int, pixels: NDArray[np.uint8] | None) -> None:
        """Show a picture [H, W, 3] in TensorBoard, where there is one."""
        if self._board and pixels is not None:
            self._board.picture(tag, pixels, step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Show a text in TensorBoard."""
        if self._board:
            self._board.text(tag, text, step)

    def histograms(self, step: int, net: nn.Module, weights: str) -> None:
        """Show how the weights of a net are spread in TensorBoard."""
        if self._board:
            for name, parameter in net.named_parameters():
                self._board.histogram(f"weights/{name.replace('.', '/')}", parameter.detach(), step, weights)

    def trace(self, batch: Batch, index: Index) -> None:
        """Write which views a virtual rank sees at a step, if traces were asked for."""
        if self._trace:
            keys = [index.key(sample) for sample in batch.samples.tolist()]
            views = list(zip(keys, batch.copies.tolist(), strict=True))
            line = {"step": batch.step, "virtual_rank": batch.virtual_rank, "views": views}
            with naming(Path(self._trace.name)):
                self._trace.write(json.dumps(line) + "\n")


def numbers_of(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line of metrics.jsonl, also those in mappings, by tag."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", float(value)
