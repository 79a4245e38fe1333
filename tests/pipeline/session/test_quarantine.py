"""Unusable samples: each counts once, on any number of processes and after a resume."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from pipeline.data.batch import Unusable
from pipeline.folder import QuarantineLine, RunFolder
from pipeline.session.log import Log
from pipeline.session.quarantine import Quarantine, unusable
from shards.dataset import Dataset
from shards.files import read_json_lines
from shards.index import Index
from shards.open import Opener, Reading
from shards.reader import arrive
from tests.http_server import serving
from tests.running import SCRIPT, run, train_here
from tests.tars import listed
from tests.tiny import HERE

UNUSABLE = (20, 21)  # of 70


@pytest.fixture(scope="module")
def damaged(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The tests' data with two training samples whose bytes are not those of the index."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(dataset.folder, folder)
    index = dataset.splits["train"]
    for sample in UNUSABLE:
        shard = index.shards[index.shard_of(sample)].name
        with (folder / "train" / shard).open("r+b") as file:
            file.seek(int(index.rows["offset"][sample]) + 30)
            file.write(b"\0\0\0\0")
    return replace(dataset, folder=folder)


def quarantined(folder: Path) -> list[str]:
    return [line["key"] for line in read_json_lines(folder / "quarantine.jsonl", QuarantineLine).good]


@pytest.mark.dist
def test_two_processes_and_a_resume_count_each_unusable_sample_once(damaged: Dataset, tmp_path: Path) -> None:
    # every image is shown in every epoch, so that both processes meet both samples; two of 70 are allowed
    flags = ("--data", damaged.folder, "--output", tmp_path, "--data.epoch", "images", "--data.max-bad", 0.03)
    keys = sorted(damaged.splits["train"].key(sample) for sample in UNUSABLE)
    for steps in (35, 50):
        run(SCRIPT, *flags, "--max-steps", steps, processes=2)
        assert sorted(quarantined(tmp_path)) == keys


@pytest.mark.slow
def test_a_resumed_run_counts_what_earlier_sessions_met(damaged: Dataset, tmp_path: Path) -> None:
    every_image = replace(HERE, data=replace(HERE.data, epoch="images", max_bad=0.03))
    for steps in (20, 40):
        train_here(damaged, tmp_path, every_image, max_steps=steps)
    assert len(quarantined(tmp_path)) == 2


@pytest.fixture
def stream(dataset: Dataset, tmp_path: Path) -> Iterator[Index]:
    """The tests' training samples behind HTTP, none damaged, of which nothing has arrived."""
    with serving(listed(tmp_path / "served", dataset.splits["train"])) as server:
        yield Opener(Reading(cache=str(tmp_path / "cache")), lambda _: None, 1).open(server.url).splits["train"]


def test_a_sample_of_a_stream_is_tried_again_where_its_rows_are_known_and_counts_on_elsewhere(
    stream: Index, tmp_path: Path
) -> None:
    sample = UNUSABLE[0]
    shard = stream.shard_of(sample)
    os.close(arrive(stream, shard))
    name = stream.shards[shard].name, stream.key(sample)
    otherwise = replace(stream, folder=tmp_path / "labels read in another way" / "train")  # of the same tars
    assert (list(unusable(otherwise, [name])), list(unusable(stream, [name]))) == ([name], [])


def test_a_process_hears_of_samples_of_shards_that_it_never_had(
    stream: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, sent = UNUSABLE[0], list[Any]()
    monkeypatch.setattr("pipeline.session.quarantine.gather_object", lambda news: sent.extend(news) or sent)
    there = replace(stream, folder=tmp_path / "of another node" / "train")
    os.close(arrive(there, there.shard_of(sample)))
    with Log(RunFolder(tmp_path), step=0, last_step=1, process=0, trace=False, quiet=True) as log:
        met, heard = (Quarantine(log, index, Accelerator(cpu=True)) for index in (there, stream))
        met.note([Unusable(sample, "torn")])
        met.share()
        heard.share()
        assert len(heard) == 1
    assert quarantined(tmp_path) == 2 * [there.key(sample)]  # by the main process of each
    assert stream.called(sample) == "000001.tar: 4"
