"""What `vitrail drill` starts as a run's processes: the run, smaller, with one fault at a moment chosen beforehand.

`accelerate launch -m launch.saboteur FAULT STEP RECIPE [fields]`. The faults are real signals to real processes; they
are in the events and the writer of checkpoints that the session is handed. Steps are counted from 0.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import Tensor

from launch.recipe_files import load_recipe
from pipeline import checkpoint
from pipeline.checkpoint import Writer
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.folder import RunFolder
from pipeline.hosting import hosting_of_launch
from pipeline.run import main
from pipeline.session.events import Events
from pipeline.session.rehearsal import smaller
from pipeline.session.session import Parts

EVERY: Final = 2  # steps between checkpoints
BALLAST: Final = "ballast"  # file that fills a disk


def drilled(recipe: Recipe, processes: int) -> Recipe:
    """Return what a drill trains of a recipe: small steps, logged and saved often, on data that is split already."""
    often = replace(recipe.checkpoint, every_steps=EVERY, every_minutes=0.0, keep=2)
    data = replace(recipe.data, splits=())
    # `auto` could compile for minutes in each session
    compute = replace(recipe.compute, compile="on" if recipe.compute.compile == "on" else "off")
    epochs = max(recipe.epochs, 100)
    return replace(smaller(recipe, processes), data=data, compute=compute, checkpoint=often, epochs=epochs)


def in_a_step(step: int, harm: Callable[[RunFolder], None]) -> Parts:
    """Return parts that do harm in the last process, as it is about to compute a step."""

    class Harmed(Events):
        def after_batch(self, batch: Batch, images: Tensor | None) -> None:
            super().after_batch(batch, images)
            hosting = self.run.job.hosting
            if batch.step == step and hosting.process == hosting.processes - 1:
                harm(self.log.folder)

    return Parts(events=Harmed)


def in_a_save(step: int, *signals: int) -> Parts:
    """Return parts that signal the process that saves the first checkpoint after a step, with a file half written."""

    class Harmed(Writer):
        def write_file(self, tensors: dict[str, Tensor], path: Path) -> None:
            super().write_file(tensors, path)
            if int(path.parent.name.removesuffix(".tmp").removeprefix(".step-")) > step:
                if signal.SIGKILL in signals:
                    os.truncate(path, path.stat().st_size // 2)
                for number in signals:
                    os.kill(os.getpid(), number)

    return Parts(writer=Harmed)


def send(number: int) -> Callable[[RunFolder], None]:
    """Return what sends a signal to its own process."""
    return lambda _: os.kill(os.getpid(), number)


def fill_the_disk(folder: RunFolder) -> None:
    """Leave half of what a checkpoint needs on the disk of a run."""
    size = sum(path.stat().st_size for path in checkpoint.checkpoints(folder.checkpoints)[0].iterdir())
    with (folder.path / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder.path).free - size // 2)


FAULTS: Final[Mapping[str, Callable[[int], Parts]]] = {
    "none": lambda step: Parts(),
    "stop": lambda step: in_a_step(step, send(signal.SIGTERM)),
    "stop-twice-in-a-save": lambda step: in_a_save(step, signal.SIGUSR1, signal.SIGUSR1),
    "kill": lambda step: in_a_step(step, send(signal.SIGKILL)),
    "kill-in-a-save": lambda step: in_a_save(step, signal.SIGKILL),
    "fill-the-disk": lambda step: in_a_step(step, fill_the_disk),
}

if __name__ == "__main__":
    fault, step, name = sys.argv[1:4]
    del sys.argv[1:4]
    main(
        load_recipe(name),
        parts=FAULTS[fault](int(step)),
        adapt=lambda recipe: drilled(recipe, hosting_of_launch(recipe).processes),
    )
