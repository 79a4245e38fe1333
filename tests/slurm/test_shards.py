"""slurm/shards.sbatch and slurm/teach.sbatch on a real controller: arrays of jobs that share one work."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Distill
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import Dataset, read_dataset
from shards.verify import verify
from tests.running import ROOT, SCRIPT
from tests.slurm.conftest import Slurm, wait_for
from tests.tiny import TINY

pytestmark = [pytest.mark.dist]


def submit(slurm: Slurm, folder: Path, script: str, *arguments: object) -> str:
    """Submit an array of three tasks, wait for its end, and return what its tasks said."""
    environment = {"PYTHON": sys.executable, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)}
    command = ["sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", f"--chdir={folder}", "--output=said-%a.out"]
    array = slurm.run(*command, str(ROOT / "slurm" / script), *map(str, arguments), environment=environment).strip()
    wait_for(lambda: not slurm.run("squeue", "-h"), "the array to end")
    said = "".join(path.read_text() for path in sorted(folder.glob("said-*.out")))
    states = [slurm.state(f"{array}_{task}") for task in range(3)]
    assert states == ["COMPLETED"] * 3, f"{states}: {said}\n{slurm.logs()}"
    return said


def test_tasks_of_an_array_build_one_data_set(slurm: Slurm, tmp_path: Path) -> None:
    said = submit(slurm, tmp_path, "shards.sbatch", "digits", tmp_path / "digits", "--samples-per-shard", 400)
    assert said.count("the last one to end writes dataset.json") < 3, said  # two may end at once
    dataset = read_dataset(tmp_path / "digits")
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 1437, "test": 360}
    assert not verify(dataset.splits).problems


def test_tasks_of_an_array_fill_one_store(slurm: Slurm, dataset: Dataset, tmp_path: Path) -> None:
    weights, store = tmp_path / "teacher.safetensors", tmp_path / "store"
    write_random_weights(replace(TINY, distill=Distill(teacher="resnet20_cifar")), weights)
    teacher = ("--distill.teacher", "resnet20_cifar", "--distill.no-token", "--distill.weights", weights)
    said = submit(slurm, tmp_path, "teach.sbatch", SCRIPT, "--data", dataset.folder, *teacher, "--distill.store", store)
    assert said.count("outputs added") == 3, said
    assert len(list(store.rglob("*.bin"))) == 12  # 4 epochs of 3 virtual ranks, all whole
