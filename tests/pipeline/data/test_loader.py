"""The loader: the order of its batches, the time spent waiting for them, and workers that end with their process."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from pipeline.data.loader import Feed, StepSampler
from shards.dataset import Dataset
from tests.running import PROGRAMS, start

SOON = 5  # seconds


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that run still; one that is dead and not buried does not."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended soon."""
    end = time.monotonic() + SOON
    while time.monotonic() < end and running(processes):
        time.sleep(0.1)
    return running(processes)


class Loading(NamedTuple):
    """A process whose loader has filled its pipes."""

    process: subprocess.Popen[str]
    workers: list[psutil.Process]


@pytest.fixture
def loading() -> Iterator[Loading]:
    process = start(PROGRAMS / "loading.py")
    workers: list[psutil.Process] = []
    try:
        assert process.stdout
        workers += [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(running(workers)) == 4
        time.sleep(1)  # until the pipes are full
        yield Loading(process, workers)
    finally:
        for alive in [process, *running(workers)]:
            alive.kill()
        process.communicate()


def test_batches_come_step_by_step_and_virtual_rank_by_virtual_rank() -> None:
    sampler = StepSampler([4, 6], range(1, 4))
    assert list(sampler) == [(4, 1), (4, 2), (4, 3), (6, 1), (6, 2), (6, 3)]
    assert len(sampler) == 6


def test_the_time_spent_waiting_is_counted() -> None:
    def slow() -> Iterator[str]:
        for batch in "ab":
            time.sleep(0.1)
            yield batch

    feed = Feed(slow())  # type: ignore[arg-type]
    assert [feed.next_batch(), feed.next_batch()] == ["a", "b"]
    assert 0.2 <= feed.seconds_waited < 1


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_nobody_reads_from_end_with_a_process_that_is_killed(loading: Loading, number: int) -> None:
    loading.process.send_signal(number)
    assert loading.process.wait(SOON) == -number
    assert left(loading.workers) == []


@pytest.mark.dist
def test_a_worker_outlives_requests_to_stop(loading: Loading) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in loading.workers:
            worker.send_signal(number)
    time.sleep(0.5)
    assert running(loading.workers) == loading.workers


@pytest.mark.dist
def test_a_training_that_is_killed_leaves_no_process_behind(dataset: Dataset, tmp_path: Path) -> None:
    options = ("--data", dataset.folder, "--output", tmp_path / "run", "--data.workers", 4)
    process = start(PROGRAMS / "slow.py", *options, env={"PAUSE": "0.5"})
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    workers = [] if process.poll() else psutil.Process(process.pid).children(recursive=True)
    process.kill()
    alive = left(workers)
    for worker in alive:
        worker.kill()
    said = process.communicate()
    assert len(workers) >= 4, said
    assert alive == []
