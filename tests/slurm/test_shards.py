"""slurm/shards.sbatch on a real controller."""

import os
import sys
from pathlib import Path

import pytest

from shards.dataset import read_dataset, verify_split
from tests.conftest import ROOT
from tests.slurm.conftest import Slurm, wait_for

pytestmark = [pytest.mark.dist]


def test_tasks_of_an_array_build_one_data_set(slurm: Slurm, tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", f"--chdir={tmp_path}"]
    command += [str(ROOT / "slurm/shards.sbatch"), "digits", str(tmp_path / "digits"), "--samples-per-shard", "400"]
    slurm.run(*command, environment=environment)
    wait_for(lambda: not slurm.run("squeue", "-h"), "the array to end", 120)
    said = "".join(path.read_text() for path in tmp_path.glob("vitrail-shards-*.out"))
    assert said.count("the last one to end writes dataset.json") == 2, said
    dataset = read_dataset(tmp_path / "digits")
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 1437, "test": 360}
    assert not [problem for index in dataset.splits.values() for problem in verify_split(index)]
