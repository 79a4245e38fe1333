"""What a run writes for people and scripts: metrics.jsonl, TensorBoard, quarantine.jsonl, traces, the console.

One process writes the first two and speaks; every process writes its own trace. On resume, what lies beyond the
checkpoint is cut off, so that no curve has a point twice.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.batch import Bad, Batch
from pipeline.config import Model
from shards.files import atomic_write
from shards.index import Index

PICTURES = 16  # images of the augmented batch that TensorBoard shows


class Log:
    """The log of a run, used as a context; `main` is True in the one process that writes the shared files."""

    def __init__(
        self, folder: Path, *, step: int, last_step: int, main: bool, process: int, trace: bool, quiet: bool
    ) -> None:
        self.folder = folder
        self.main = main
        self._console = Console(quiet=quiet or not main, highlight=False, soft_wrap=True)
        self._known_bad = read_quarantine(folder)
        self._trace: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._board: SummaryWriter | None = None
        self._bar: Progress | None = None
        if trace:
            (folder / "trace").mkdir(exist_ok=True)
            self._trace = (folder / "trace" / f"rank-{process}.jsonl").open("a", buffering=1)
        if main:
            self._metrics = (folder / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
            if self._console.is_terminal and not quiet:
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TextColumn("{task.completed}/{task.total}"),
                )
                self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
                self._task = self._bar.add_task("step", total=last_step, completed=step)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for closing in (self._bar and self._bar.stop, self._board and self._board.close):
            if closing:
                closing()
        for file in (self._metrics, self._trace):
            if file:
                file.close()

    def say(self, text: str) -> None:
        """Print a line in the one process that speaks."""
        self._console.print(text, markup=False)
        sys.stdout.flush()

    def advance(self, step: int) -> None:
        """Move the progress bar, where there is one."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def record(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl, and its numbers to TensorBoard."""
        if not self._metrics or not self._board:
            return
        self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **values}) + "\n")
        prefix = "/".join(str(values[name]) for name in ("split", "weights") if name in values) or kind
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
        self._board.add_images("train/augmented", shown, step)

    def trace(self, batch: Batch, index: Index) -> None:
        """Write which views a virtual rank sees at a step, if traces were asked for."""
        if self._trace:
            keys = [index.key(sample) for sample in batch.samples.tolist()]
            views = list(zip(keys, batch.copies.tolist(), strict=True))
            line = {"step": batch.step, "virtual_rank": batch.virtual_rank, "views": views}
            self._trace.write(json.dumps(line) + "\n")

    def quarantine(self, found: list[Bad], index: Index) -> int:
        """Write the samples that are newly found to be unusable, and return how many are known."""
        new = [bad for bad in found if (index.folder.name, index.key(bad.sample)) not in self._known_bad]
        if new:
            with (self.folder / "quarantine.jsonl").open("a") as file:
                for bad in new:
                    self._known_bad.add((index.folder.name, index.key(bad.sample)))
                    shard = index.shards[index.shard_of(bad.sample)].name
                    where = {"split": index.folder.name, "shard": shard, "key": index.key(bad.sample)}
                    offset = int(index.rows["offset"][bad.sample])
                    file.write(json.dumps({**where, "offset": offset, "reason": bad.reason}) + "\n")
            self.say("\n".join(f"not usable: {bad.reason}" for bad in new))
        return len([split for split, _ in self._known_bad if split == index.folder.name])


def read_quarantine(folder: Path) -> set[tuple[str, str]]:
    """Return the (split, key) of the samples that earlier sessions of a run could not use."""
    path = folder / "quarantine.jsonl"
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["split"], line["key"]) for line in lines}


def rewind(folder: Path, step: int) -> None:
    """Cut off what metrics and traces hold beyond `step` finished steps, and lines that a kill left half written."""
    keep_lines(folder / "metrics.jsonl", lambda line: line["step"] <= step)
    keep_lines(folder / "quarantine.jsonl", lambda _: True)
    for path in (folder / "trace").glob("rank-*.jsonl"):
        keep_lines(path, lambda line: line["step"] < step)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines with the whole and wanted ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if wanted(json.loads(line)):
                kept.append(line)
        except ValueError:  # the last line of a killed run
            continue
    with atomic_write(path) as file:
        file.write("".join(kept).encode())
