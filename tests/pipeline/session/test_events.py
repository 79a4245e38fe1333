"""What happens beside the steps: checkpoints by the clock, and samples that cannot be used."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor

from pipeline import checkpoint
from pipeline.checkpoint import Tensors, Writer
from pipeline.data.batch import Unusable
from pipeline.errors import TrainingError
from pipeline.folder import RunFolder
from pipeline.session import events
from pipeline.session.events import Events
from pipeline.session.log import Log
from pipeline.session.quarantine import Quarantine
from pipeline.session.session import Parts
from shards.dataset import Dataset, read_dataset
from shards.files import read_json_lines
from tests.running import train_here
from tests.tiny import HERE

SECONDS = 25  # that a step takes


def saves(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch, *, minutes: float, logged: int, steps: int = 10
) -> list[int]:
    """Train on a clock of our own, and return the steps at which checkpoints were saved."""
    now, saved = [1000.0], []

    class Ticking(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            now[0] += SECONDS
            return super().after_step(step, losses, agreed, norm)

    class Noting(Writer):
        def save(
            self,
            root: Path,
            step: int,
            state: Mapping[str, Any],
            tensors: Mapping[str, Tensors],
            keep: int,
            spare: int = 0,
        ) -> None:
            saved.append(step)
            super().save(root, step, state, tensors, keep, spare)

    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now[0]))
    recipe = replace(
        HERE,
        checkpoint=replace(HERE.checkpoint, every_steps=0, every_minutes=minutes),
        log=replace(HERE.log, every_steps=logged),
    )
    parts = Parts(events=Ticking, writer=Noting)
    assert train_here(dataset, folder, recipe, parts, max_steps=steps) == 0
    newest = checkpoint.checkpoints(folder / "checkpoints")
    assert [checkpoint.step_of(path) for path in newest] == saved[:-3:-1]
    return saved


@pytest.mark.slow
def test_a_checkpoint_is_saved_as_often_as_the_clock_says(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=1, logged=1) == [3, 6, 9, 10]


@pytest.mark.slow
def test_where_nothing_is_logged_the_clocks_checkpoint_comes_one_step_later_and_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=1, logged=100) == [4, 8, 10]


@pytest.mark.slow
def test_nothing_is_saved_by_a_clock_that_is_off(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=0, logged=1) == [10]


@pytest.mark.slow
def test_nothing_is_saved_before_the_minutes_have_passed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = 11 * SECONDS / 60
    assert saves(dataset, tmp_path, monkeypatch, minutes=minutes, logged=1) == [10]


def a_quarantine(dataset: Dataset, folder: Path) -> tuple[Quarantine, Log]:
    log = Log(RunFolder(folder), step=0, last_step=1, process=0, trace=False, quiet=True)
    return Quarantine(log, dataset.splits["train"], Accelerator(cpu=True)), log


def named(folder: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(RunFolder(folder).quarantine))


def test_an_unusable_sample_is_counted_and_named_once_however_often_it_is_met(dataset: Dataset, tmp_path: Path) -> None:
    quarantine, log = a_quarantine(dataset, tmp_path)
    with log:
        quarantine.note([Unusable(20, "torn"), Unusable(5, "no image"), Unusable(20, "torn")])
        assert quarantine.has_news
        assert len(quarantine) == 0  # until all processes know
        quarantine.share()
        assert len(quarantine) == 2
        quarantine.note([Unusable(20, "torn")])
        assert not quarantine.has_news
        quarantine.share()
        assert len(quarantine) == 2
    index = dataset.splits["train"]
    assert named(tmp_path) == [
        {
            "split": "train",
            "shard": shard,
            "key": index.key(sample),
            "offset": int(index.rows["offset"][sample]),
            "reason": reason,
        }
        for sample, shard, reason in ((5, "000000.tar", "no image"), (20, "000001.tar", "torn"))
    ]


def test_a_session_counts_what_earlier_ones_met_and_does_not_name_it_again(dataset: Dataset, tmp_path: Path) -> None:
    quarantine, log = a_quarantine(dataset, tmp_path)
    with log:
        quarantine.note([Unusable(5, "no image")])
        quarantine.share()
    again, log = a_quarantine(dataset, tmp_path)
    with log:
        assert len(again) == 1
        again.note([Unusable(5, "no image"), Unusable(6, "torn")])
        again.share()
        assert len(again) == 2
    assert [line["reason"] for line in named(tmp_path)] == ["no image", "torn"]


def test_what_another_split_cannot_use_does_not_count(dataset: Dataset, tmp_path: Path) -> None:
    line = {"split": "test", "shard": "000000.tar", "key": "000005", "offset": 1536, "reason": "torn"}
    RunFolder(tmp_path).quarantine.write_text(json.dumps(line) + "\n")
    quarantine, log = a_quarantine(dataset, tmp_path)
    with log:
        assert len(quarantine) == 0


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The data set with three training images that cannot be used, far from each other."""
    folder = tmp_path / "damaged"
    shutil.copytree(dataset.folder, folder)
    index = dataset.splits["train"]
    for sample in (3, 33, 63):
        tar = folder / "train" / index.shards[index.shard_of(sample)].name
        with tar.open("r+b") as file:
            file.seek(int(index.rows["offset"][sample]) + 100)
            file.write(b"damaged")
    return read_dataset(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "goes_on"), [(3 / 70, True), (2.99 / 70, False), (0.0, False)])
def test_a_run_stops_above_the_share_of_unusable_samples_and_not_at_it(
    damaged: Dataset, tmp_path: Path, share: float, goes_on: bool
) -> None:
    recipe = replace(HERE, data=replace(HERE.data, epoch="images", max_bad=share), epochs=1)
    if goes_on:
        assert train_here(damaged, tmp_path / "run", recipe) == 0
    else:
        with pytest.raises(TrainingError, match=r"of 70 training samples cannot be used, more than --data.max-bad"):
            train_here(damaged, tmp_path / "run", recipe)
    keys = [line["key"] for line in named(tmp_path / "run")]
    assert len(keys) == len(set(keys))
    assert (sorted(keys) == ["000003", "000033", "000063"]) == (share > 0)
