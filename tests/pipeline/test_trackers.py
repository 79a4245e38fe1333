"""Trackers of others: known by Accelerate's names, and refused before anything is built where they are missing."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from pipeline.folder import RunFolder
from pipeline.job import REHEARSAL, TRAINING, resolve
from pipeline.request import Request
from pipeline.trackers import Trackers, names
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.tiny import HERE

OPTIONAL = next(str(kind) for kind in LoggerType if str(kind) != "all" and kind not in get_available_trackers())


def asked(dataset: Dataset, folder: Path, trackers: str) -> Request:
    recipe = replace(HERE, log=replace(HERE.log, trackers=trackers))
    return Request(recipe=recipe, data=str(dataset.folder), output=str(folder / "run"))


def test_names_stand_between_commas() -> None:
    assert names("tensorboard, wandb,") == ["tensorboard", "wandb"]
    assert names("") == []


@pytest.mark.parametrize("need", [TRAINING, REHEARSAL])
def test_a_missing_tracker_is_refused_with_its_pip_command_before_anything_is_built(
    dataset: Dataset, tmp_path: Path, need: object
) -> None:
    with pytest.raises(BadRequest, match=f"pip install {OPTIONAL.replace('_', '-')}") as caught:
        resolve(asked(dataset, tmp_path, f"tensorboard,{OPTIONAL}"), need)  # type: ignore[arg-type]
    assert [problem.field for problem in caught.value.problems] == ["log.trackers"]
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_the_nearest_there_is(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"'wanddb' is no tracker; did you mean wandb\?"):
        resolve(asked(dataset, tmp_path, "wanddb"), TRAINING)


class Recorded(GeneralTracker):
    """A tracker of a name that is known, which keeps what it was begun with and hears nothing."""

    name = "wandb"
    requires_logging_directory = False
    begun: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__(_blank=True)
        self.begun.append(options)

    def start(self) -> None: ...

    def log(self, values: dict[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("503: the server is away")
        self.begun.append({"step": step})

    def finish(self) -> None: ...


def test_a_run_is_known_by_an_id_of_its_own_which_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by where it lies: that is called alike on another machine, and when it is trained anew."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorded)
    monkeypatch.setattr(Recorded, "begun", [])
    folder = RunFolder(tmp_path / "run")
    for anew in (False, False, True):
        if anew:
            shutil.rmtree(folder.path)
        folder.path.mkdir(exist_ok=True)
        Trackers("tensorboard,wandb", folder).close()
    first, again, other = (options["id"] for options in Recorded.begun)
    assert first == again != other
    assert {options["resume"] for options in Recorded.begun} == {"allow"}
    assert {options["name"] for options in Recorded.begun} == {"run"}
    folder.tracked.write_text("{")
    said: list[str] = []
    folder.mend(said.append)
    assert "Set aside as tracked.json.damaged" in said[0]
    assert folder.tracked_id() not in (first, other)


def test_a_tracker_that_fails_is_left_with_a_word_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorded)
    monkeypatch.setattr(Recorded, "begun", [])
    trackers = Trackers("wandb", RunFolder(tmp_path))
    for step in (1, 2, 3):
        trackers.scalars({"train/loss": 1.0}, step)
    trackers.close()
    assert [known["step"] for known in Recorded.begun[1:]] == [1]
    said = capsys.readouterr().err
    assert said.count("wandb takes no more (ConnectionError: 503: the server is away). The run goes on.") == 1
