"""Trackers of others, by Accelerate's names: Weights & Biases, MLflow and the like, each an optional package.

TensorBoard is our own (`pipeline/session/board.py`). A tracker hears each step once: a run that goes on says again only
what lies beyond the last step that any session logged, which is the same numbers anyway.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from pipeline.folder import RunFolder
from shards.errors import Problem, harmless

TENSORBOARD: Final = "tensorboard"
PROJECT: Final = "vitrail"
RUN_NAME: Final = {  # what a tracker calls the name of a run; the others have the project's place for it
    "wandb": "name",
    "mlflow": "run_name",
    "trackio": "name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}


def names(trackers: str) -> list[str]:
    """Return the trackers that `--log.trackers` names."""
    return [name for name in (part.strip() for part in trackers.split(",")) if name]


def unknown_trackers(trackers: str) -> Iterator[Problem]:
    """Complain of names that are none of a tracker."""
    for name in names(trackers):
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
            yield Problem("log.trackers", f"--log.trackers {trackers}: {name!r} is no tracker{meant}")


def missing_trackers(trackers: str) -> Iterator[Problem]:
    """Complain of trackers whose package is not installed."""
    of_others = set(map(str, LoggerType.list()))  # those that a program registered itself are there
    for name in names(trackers):
        if name in of_others and name not in map(str, get_available_trackers()):
            package = name.replace("_", "-")
            yield Problem(
                "log.trackers",
                f"--log.trackers {trackers}: the package {package} is not installed: pip install {package}",
            )


class Trackers:
    """The trackers of a run beside TensorBoard."""

    def __init__(self, trackers: str, folder: RunFolder) -> None:
        name_of_run = folder.path.resolve().name
        self._told = folder.told  # the step up to which they know the run already
        self._open: dict[str, GeneralTracker] = {}
        for name in names(trackers):
            if name == TENSORBOARD:
                continue
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            options: dict[str, Any] = {RUN_NAME[name]: name_of_run} if name in RUN_NAME else {}
            if name == "wandb":  # which goes on with a run of the same id, wherever that was made
                options |= {"id": folder.tracked_id(), "resume": "allow"}
            if kind.requires_logging_directory:
                options["logging_dir"] = str(folder)
            tracker = kind(PROJECT if name in RUN_NAME else f"{PROJECT}-{name_of_run}", **options)
            tracker.start()
            self._open[name] = tracker

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        """Say what the run's recipe is."""
        for tracker in self._open.values():
            tracker.store_init_configuration(dict(hyperparameters))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Say the numbers of a step."""
        for name, tracker in list(self._open.items()) if step > self._told else ():
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # of a library and of its server: what counts is in the run's folder
                del self._open[name]
                said = f"{name} takes no more ({type(error).__name__}: {error}). The run goes on."
                print(harmless(f"--log.trackers: {said}"), file=sys.stderr)

    def close(self) -> None:
        """Say that the session is over."""
        for tracker in self._open.values():
            tracker.finish()
