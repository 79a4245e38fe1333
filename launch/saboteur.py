"""What `vitrail drill` starts as a run's processes: the run, smaller, with one fault at a moment chosen beforehand.

`accelerate launch -m launch.saboteur FAULT STEP RECIPE [fields]`. The faults are real signals to real processes; they
are put between the run's own calls from here, so that the run has no place for them. Steps are counted from 0.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from launch.recipes import load_recipe
from pipeline import checkpoint
from pipeline.config import Recipe
from pipeline.events import Events
from pipeline.hosting import processes_of_launch
from pipeline.rehearsal import smaller
from pipeline.run import main

EVERY: Final = 2  # steps between checkpoints
BALLAST: Final = "ballast"  # file that fills a disk


def drilled(recipe: Recipe, processes: int) -> Recipe:
    """Return what a drill trains of a recipe: small steps, logged and saved often."""
    often = replace(recipe.checkpoint, every_steps=EVERY, every_minutes=0.0, keep=2)
    return replace(smaller(recipe, processes), checkpoint=often, epochs=max(recipe.epochs, 100))


def in_a_step(step: int, harm: Callable[[Path], None]) -> None:
    """Do harm in the last process, as it is about to compute a step."""
    after_batch = Events.after_batch
    processes, process = processes_of_launch()

    def interrupted(self: Events, batch: Any, images: Any) -> None:
        after_batch(self, batch, images)
        if batch.step == step and process == processes - 1:
            harm(self.log.folder)

    Events.after_batch = interrupted  # type: ignore[method-assign]


def fill_the_disk(folder: Path) -> None:
    """Leave half of what a checkpoint needs on the disk of a run."""
    size = sum(path.stat().st_size for path in checkpoint.checkpoints(folder / "checkpoints")[0].iterdir())
    with (folder / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - size // 2)


def in_a_save(step: int, *signals: int) -> None:
    """Send signals to the process that saves the first checkpoint after a step, with a file half written."""
    save_file = checkpoint.save_file

    def interrupted(tensors: Any, path: Any) -> None:
        save_file(tensors, path)
        if int(path.parent.name.removesuffix(".tmp").removeprefix(".step-")) > step:
            if signal.SIGKILL in signals:
                os.truncate(path, path.stat().st_size // 2)
            for number in signals:
                os.kill(os.getpid(), number)

    checkpoint.save_file = interrupted  # type: ignore[assignment]


FAULTS: Final[Mapping[str, Callable[[int], None]]] = {
    "none": lambda step: None,
    "stop": lambda step: in_a_step(step, lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    "stop-twice-in-a-save": lambda step: in_a_save(step, signal.SIGUSR1, signal.SIGUSR1),
    "kill": lambda step: in_a_step(step, lambda _: os.kill(os.getpid(), signal.SIGKILL)),
    "kill-in-a-save": lambda step: in_a_save(step, signal.SIGKILL),
    "fill-the-disk": lambda step: in_a_step(step, fill_the_disk),
}

if __name__ == "__main__":
    fault, step, name = sys.argv[1:4]
    del sys.argv[1:4]
    FAULTS[fault](int(step))
    main(load_recipe(name), lambda recipe: drilled(recipe, processes_of_launch()[0]))
