"""`vitrail doctor`: a machine that is well, and each thing that can be wrong with it."""

import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch import doctor
from launch.doctor import Finding, examine
from pipeline.config import Recipe
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.request import Request
from shards import locks
from shards.dataset import Dataset
from tests.http_server import serving
from tests.running import SCRIPT, run_launched, vitrail_process
from tests.shards.test_locks import without_locks
from tests.tiny import HERE, TINY

Usage = namedtuple("Usage", ["total", "used", "free"])


def job_into(folder: Path, recipe: Recipe = TINY) -> Job:
    return resolve(Request(recipe=recipe, output=str(folder)), REHEARSAL)


@pytest.mark.dist
def test_a_machine_that_is_well(dataset: Dataset, tmp_path: Path) -> None:
    printed = vitrail_process("doctor", SCRIPT, "--data", dataset.folder, "--output", tmp_path / "run").stdout
    assert "2 processes, gloo" in printed
    assert "BAD" not in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.dist
def test_under_a_launcher_its_processes_add_up(dataset: Dataset, tmp_path: Path) -> None:
    doctor = ("launch.cli", "doctor", SCRIPT, "--data", dataset.folder, "--output", tmp_path / "run")
    printed = run_launched("cpu", "-m", *doctor, processes=3)
    assert printed.count("3 processes, gloo") == 1
    assert "BAD" not in printed


def test_a_process_that_cannot_add_up_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch.multiprocessing, "spawn", lambda *_, **__: 1 / 0)
    assert doctor.all_reduce(Hosting(), 2) == Finding("all-reduce", False, "2 processes, gloo: division by zero")


def test_too_little_shared_memory_and_disk_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6, 0))
    recipe = replace(TINY, data=replace(TINY.data, workers=3))
    job = job_into(tmp_path / "not" / "there", recipe)
    memory = doctor.shared_memory(job)
    assert memory.ok is False
    assert "for 3 loader workers; fewer --data.workers" in memory.says
    assert doctor.disk(job).ok is False


def test_processes_that_share_the_cores_share_the_loader_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "loader_workers", lambda recipe, cores: cores)  # as beside GPUs
    monkeypatch.setattr(doctor.torch.accelerator, "device_count", lambda: 8)
    job = job_into(tmp_path)
    alone = replace(job, hosting=replace(job.hosting, cores=32, workers=16))  # as without a launcher
    assert "for 32 loader workers" in doctor.shared_memory(alone).says


def test_an_output_without_locks_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = job_into(tmp_path / "not" / "there")
    assert doctor.locks(job) == Finding("locks", True, f"{tmp_path} has them")
    without_locks(monkeypatch)
    found = doctor.locks(job)
    assert found.ok is None
    assert f"{tmp_path} has none: a file is the lock" in found.says
    monkeypatch.setattr(locks, "ANSWER", 0.1)
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: time.sleep(1))
    found = doctor.locks(job)
    assert found.ok is False
    assert "does not answer to a request for a lock" in found.says


def test_a_torn_shard_and_a_missing_folder_are_told_of(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset.folder, copy)
    tar = sorted((copy / "train").glob("*.tar"))[-1]
    os.truncate(tar, 1000)
    torn = doctor.shards(str(copy), HERE)
    assert torn.ok is False
    assert tar.name in torn.says
    assert doctor.shards(str(tmp_path / "gone"), HERE).ok is False
    assert doctor.shards("", HERE).ok is None


def test_of_data_behind_a_url_one_shard_of_each_split_is_fetched(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, data=replace(HERE.data, cache=str(tmp_path / "cache")))
    with serving(dataset.folder) as server:
        found = doctor.shards(server.url, recipe)
        fetched = {asked.path for asked in server.gets(".tar")}
    assert found.ok is True
    assert "4 images, the first and last of one shard of each split (none of the others was fetched), in" in found.says
    assert fetched == {"train/000000.tar", "test/000000.tar"}


def test_a_host_that_does_not_know_itself_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "no-such-host.invalid")
    found = doctor.name_and_port()
    assert found.ok is False
    assert "no-such-host.invalid" in found.says
    assert "/etc/hosts" in found.says


def test_a_processor_that_makes_other_pixels_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert doctor.processor() == Finding("processor", True, "AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    found = doctor.processor()
    assert found.ok is None
    assert "without AVX2 (DEFAULT)" in found.says


@pytest.mark.dist
def test_all_is_examined(dataset: Dataset, tmp_path: Path) -> None:
    found = examine(job_into(tmp_path), str(dataset.folder))
    assert [finding.what for finding in found if finding.ok is not True and finding.what != "processor"] == []
    assert len(found) == 10
