"""Unusable samples: each counts once, on any number of processes and after a resume."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.folder import QuarantineLine
from shards.dataset import Dataset
from shards.files import read_json_lines
from tests.running import SCRIPT, run, train_here
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
