"""Trackers of others: known by Accelerate's names, and refused before anything is built where they are missing."""

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from pipeline.job import REHEARSAL, TRAINING, resolve
from pipeline.request import Request
from pipeline.trackers import names
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
