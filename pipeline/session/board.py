"""The run in TensorBoard: curves, texts, pictures, histograms, and its row on the page of hyperparameters.

Event files lie in `tensorboard/NAME/`, so that a run has a name wherever TensorBoard is started. What is said of an
evaluation's weights lies in a folder of theirs below it: raw and averaged weights are two lines of one chart. Each
writer begins by purging what lies beyond the checkpoint, so no curve has a point twice; it must therefore write nothing
at a step before. Steps are finished ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from shards.files import naming

CHARTS: Final = {  # of the page "custom scalars": several curves of a run on one chart
    "training": {
        "loss": ["Multiline", ["train/loss"]],
        "learning rate by group": ["Multiline", ["train/lr", "train/lr_by_group/.*"]],
        "seconds of a step by part": ["Multiline", ["train/times/.*"]],
    }
}


class Board:
    """TensorBoard's files of a run in a folder, from a step on.  Raises OSError where they cannot be written."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step
        self._writers: dict[str, SummaryWriter] = {}
        below = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        try:
            for weights in ("", *below):
                self._writer(weights)
        except BaseException:
            self.close()
            raise

    def _writer(self, weights: str = "") -> SummaryWriter:
        if weights not in self._writers:
            with naming(self._folder):
                self._writers[weights] = SummaryWriter(self._folder / weights, purge_step=self._step + 1)
        return self._writers[weights]

    def describe(self, hyperparameters: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        """Write the recipe as text and as hyperparameters, and which charts there are.

        `metrics`: tags, and the weights in whose folder each is; they stand on the page of hyperparameters too.
        """
        writer = self._writer()
        lines = "\n".join(f"    {name} = {value}" for name, value in hyperparameters.items())
        with naming(self._folder):
            writer.add_text("recipe", lines, self._step + 1)
            if self._step:  # the row is there
                return
            writer.add_custom_scalars(CHARTS)
            values = {
                name: value for name, value in hyperparameters.items() if isinstance(value, bool | int | float | str)
            }
            columns = [Metric(tag, group=weights, display_name=f"{tag} {weights}") for weights, tag in metrics.items()]
            self._add(hparams_config_pb([HParam(name) for name in values], columns), 0)
            self._add(hparams_pb(values, trial_id=self._folder.name), 0)

    def end(self) -> None:
        """Say on the page of hyperparameters that the run is done."""
        with naming(self._folder):
            *_, ended = hparams({}, {})
            self._add(ended, self._step + 1)

    def _add(self, summary: Any, step: int) -> None:
        """Write what SummaryWriter has no word for."""
        files: Any = self._writer().file_writer
        files.add_summary(summary, step)

    def scalars(self, values: Mapping[str, float], step: int, weights: str = "") -> None:
        """Write points of curves, in the folder of some weights or in the run's own."""
        writer = self._writer(weights)
        with naming(self._folder):
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in lines as they are."""
        with naming(self._folder):
            self._writer().add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def picture(self, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show a picture [H, W, 3]."""
        with naming(self._folder):
            self._writer().add_image(tag, pixels, step, dataformats="HWC")

    def histogram(self, tag: str, values: Tensor, step: int, weights: str) -> None:
        """Show how values are spread."""
        writer = self._writer(weights)
        with naming(self._folder):
            writer.add_histogram(tag, values.float(), step)

    def close(self) -> None:
        """Write what is left, and close the files."""
        for writer in self._writers.values():
            writer.close()
