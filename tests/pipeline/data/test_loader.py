"""The loader: the order of its batches, the time spent waiting for them, and what becomes of its workers."""

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from torch.utils.data import Dataset as Batches

from pipeline.data import loader
from pipeline.data.loader import LOOK_AHEAD, STOP_SIGNALS, Feed, StepSampler, load, shared_memory
from pipeline.data.record import eval_record, room, view_record
from pipeline.errors import LoaderError
from shards.dataset import Dataset
from shards.errors import ShardError
from tests.forks import Program
from tests.running import PROGRAMS, TIMEOUT, start
from tests.tiny import TINY


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that run still; one that is dead and not buried does not."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that do not end."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and running(processes):
        time.sleep(0.1)
    return running(processes)


def started(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return the children of this process that were not there before, in the order of their start."""
    return sorted(set(psutil.Process().children()) - before, key=lambda process: process.pid)


@contextmanager
def leaving_nobody() -> Iterator[set[psutil.Process]]:
    """Give the children that there are, and see that no other is left.

    An earlier test's may be there: multiprocessing's resource tracker, which a pool of spawned processes starts, stays
    for as long as its process.
    """
    before = set(psutil.Process().children())
    try:
        yield before
    finally:
        assert left(started(before)) == []


class Loading(NamedTuple):
    """A process whose loader has filled its pipes."""

    process: Program
    workers: list[psutil.Process]


@pytest.fixture
def loading() -> Iterator[Loading]:
    process = start(PROGRAMS / "loading.py")
    workers: list[psutil.Process] = []
    try:
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


def test_steps_that_are_skipped_have_no_batches_and_those_of_a_long_run_take_no_memory() -> None:
    sampler = StepSampler(range(3, 7), range(2), frozenset({1, 4, 5, 9}))
    assert list(sampler) == [(3, 0), (3, 1), (6, 0), (6, 1)]
    assert len(sampler) == 4
    assert next(iter(StepSampler(range(10**12, 10**15), range(1), {10**12}))) == (10**12 + 1, 0)


def test_the_time_spent_waiting_and_preparing_is_counted() -> None:
    def slow() -> Iterator[SimpleNamespace]:
        for seconds in (2.0, 3.0):
            time.sleep(0.1)
            yield SimpleNamespace(seconds=seconds)

    feed = Feed(slow())  # type: ignore[arg-type]
    assert [batch and batch.seconds for batch in (feed.next_batch(), feed.next_batch(), feed.next_batch())] == [
        2,
        3,
        None,
    ]
    assert feed.seconds_waited >= 0.2
    assert feed.seconds_prepared == 5


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_nobody_reads_from_end_with_a_process_that_is_killed(loading: Loading, number: int) -> None:
    loading.process.send_signal(number)
    assert loading.process.wait(TIMEOUT) == -number
    assert left(loading.workers) == []


@pytest.mark.dist
def test_a_worker_outlives_requests_to_stop(loading: Loading) -> None:
    for number in STOP_SIGNALS:
        for worker in loading.workers:
            worker.send_signal(number)
    time.sleep(0.5)
    assert running(loading.workers) == loading.workers


@pytest.mark.dist
def test_a_training_that_is_killed_leaves_no_process_behind(dataset: Dataset, tmp_path: Path) -> None:
    options = ("--data", dataset.folder, "--output", tmp_path / "run", "--data.workers", 4)
    process = start(PROGRAMS / "slow.py", *options, env={"PAUSE": "0.5"})
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + TIMEOUT
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


class Faulty(Batches[torch.Tensor]):
    """Batches of a number each, the fifth of which does what it is handed."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == 4:
            self.fault()
        return torch.full((100,), number)


def take(fault: Callable[[], object], workers: int = 2) -> list[int]:
    """Return the numbers of ten batches, and see that no worker is left."""
    with leaving_nobody():
        return [int(batch[0]) for batch in load(Faulty(fault), range(10), workers=workers, pin_memory=False)]


def fail(error: Exception) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


def kill(number: int) -> Callable[[], object]:
    return lambda: os.kill(os.getpid(), number)


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


several = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core


@pytest.mark.dist
@several
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_batches_come_and_an_error_of_ours_comes_as_it_was_raised(workers: int) -> None:
    assert take(lambda: None, workers) == list(range(10))
    with pytest.raises(ShardError, match=r"^000001.tar: gone\. Copy it\.$"):
        take(fail(ShardError("000001.tar: gone. Copy it.")), workers)


@pytest.mark.dist
@several
def test_another_error_of_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match=r"(?s)worker process 0.*Traceback.*in raise_it"):
        take(fail(ZeroDivisionError("by zero")))
    with pytest.raises(LoaderError, match=r"no memory is left to prepare the batch 4\..*--data.workers"):
        take(fail(MemoryError()))


@pytest.mark.dist
@several
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (kill(signal.SIGKILL), r"was killed \(signal 9: out of memory\?\)\. Take fewer --data.workers"),
        (kill(signal.SIGSEGV), r"was killed \(signal 11: "),
        (lambda: os._exit(3), "ended with exit code 3"),
        (sys.exit, "ended with exit code 0"),
    ],
)
def test_a_worker_that_dies_is_named_with_what_to_do(fault: Callable[[], object], words: str) -> None:
    with pytest.raises(LoaderError, match=rf"^loader worker 0 \(process \d+\) {words}"):
        take(fault)


class Ending:
    """A worker that has closed its pipe, as a process that ends does, and has its exit code once it is waited for."""

    pid = 7

    def __init__(self) -> None:
        self.sentinel, end = os.pipe()
        os.close(end)
        self.exitcode: int | None = None

    def join(self) -> None:
        self.exitcode = 0


def test_a_worker_that_is_ending_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Ending()

    def cut() -> Iterator[object]:
        yield from ()
        raise FileNotFoundError(2, "No such file or directory")  # the socket through which it hands over descriptors

    monkeypatch.setattr(loader, "workers_of", lambda _: [worker])
    monkeypatch.setattr(loader, "kill_workers", lambda _: None)
    try:
        with pytest.raises(LoaderError, match=r"^loader worker 0 \(process 7\) ended with exit code 0"):
            list(loader.watched(cut(), 60.0))
    finally:
        os.close(worker.sentinel)


@pytest.mark.dist
@several
def test_a_worker_that_dies_while_nobody_waits_for_it_disturbs_nothing_until_somebody_does() -> None:
    with leaving_nobody() as before:
        batches = iter(load(Faulty(lambda: None), range(100), workers=2, pin_memory=False))
        assert next(batches)[0] == 0
        started(before)[1].kill()
        time.sleep(0.5)  # torch's handler would raise here
        with pytest.raises(LoaderError, match=r"loader worker \d .* was killed"):
            next(batches)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(loader, "PATIENCE", 2.0)


@pytest.mark.dist
@several
def test_a_worker_that_waits_for_a_file_for_good_is_named_with_the_file(impatient: None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "000007.tar")
    keep = os.open(tmp_path / "000007.tar", os.O_RDWR)
    file = os.open(tmp_path / "000007.tar", os.O_RDONLY)
    try:
        with pytest.raises(
            LoaderError, match=r"^loader worker 0 .* has done nothing for 2 s: it waits for .*/000007.tar"
        ):
            take(lambda: os.read(file, 1))
    finally:
        os.close(keep)
        os.close(file)


@pytest.mark.dist
@several
def test_a_worker_that_waits_for_a_lock_that_nobody_holds_is_an_error(impatient: None) -> None:
    lock = loader.Event()  # as one is that a thread held when the worker was forked
    with pytest.raises(LoaderError, match="it waits for something that does not come"):
        take(lock.wait)


class Lost(Batches[object]):
    """A batch that cannot be handed over: the thread that does so prints why, and nobody hears of it."""

    def __getitem__(self, number: int) -> object:
        return lambda: number


@pytest.mark.dist
@several
def test_a_batch_that_is_lost_on_the_way_is_an_error(impatient: None) -> None:
    with pytest.raises(LoaderError, match=r"for something that does not come, or its batch was lost \(see above\)"):
        next(iter(load(Lost(), range(3), workers=1, pin_memory=False)))


@pytest.mark.dist
@several
def test_a_worker_that_is_stopped_is_an_error(impatient: None) -> None:
    with pytest.raises(LoaderError, match="it waits for SIGCONT: it is stopped"):
        take(kill(signal.SIGSTOP))


def work(seconds: float = 5) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.dist
@several
def test_a_worker_that_is_slow_and_works_is_waited_for(impatient: None) -> None:
    assert take(work) == list(range(10))


@pytest.mark.dist
@several
def test_a_worker_whose_reads_come_slowly_is_waited_for(impatient: None) -> None:
    def trickle() -> None:  # next to no processor's time
        with open("/dev/zero", "rb", buffering=0) as file:
            for _ in range(20):
                time.sleep(0.25)
                file.read(1)

    assert take(trickle) == list(range(10))


def without_shared_memory() -> None:
    with limited(resource.RLIMIT_FSIZE, 1000):
        room(10, 32, 32, 3)


@pytest.mark.dist
@several
def test_shared_memory_that_is_full_is_an_error_of_the_worker_that_finds_it_so() -> None:
    with pytest.raises(LoaderError, match=r"loader worker 0: no shared memory for a batch of 0.0 MB .*--shm-size"):
        take(without_shared_memory)


def past_free_descriptors(count: int) -> int:
    """Return a limit under which so many more files can be opened: it is one of numbers, and some may be free."""
    free = [os.dup(0) for _ in range(count)]
    for descriptor in free:
        os.close(descriptor)
    return max(free) + 1


@pytest.mark.dist
@several
def test_workers_that_cannot_be_started_are_an_error() -> None:
    gc.collect()  # files of loaders before would be closed meanwhile, and leave room
    with (
        limited(resource.RLIMIT_NOFILE, past_free_descriptors(5)),
        pytest.raises(LoaderError, match=r"4 loader workers cannot be started \(.*Too many open files.*ulimit"),
    ):
        take(lambda: None, workers=4)


@pytest.mark.dist
@several
def test_a_limit_of_open_files_that_is_met_on_the_way_is_an_error() -> None:
    with leaving_nobody():
        batches = iter(load(Faulty(lambda: None), range(100), workers=1, pin_memory=False))
        kept = [next(batches)]
        with (
            limited(resource.RLIMIT_NOFILE, past_free_descriptors(5)),
            pytest.raises(LoaderError, match="too many open files; raise it \\(ulimit -n 65536\\)"),
        ):
            kept += batches


@pytest.mark.dist
@several
def test_the_end_of_the_thread_that_copies_for_a_gpu_says_what_it_most_often_met() -> None:
    def end() -> None:
        raise RuntimeError("Pin memory thread exited unexpectedly")  # as torch words it

    with pytest.raises(LoaderError, match="most often too many open files; raise it \\(ulimit -n 65536\\)"):
        take(end, workers=1)


def test_shared_memory_holds_what_is_prepared_and_what_is_in_use_for_training_and_evaluation() -> None:
    view, image = (record(TINY.model.img_size).itemsize for record in (view_record, eval_record))
    assert min(view, image) > 3 * TINY.model.img_size**2
    assert shared_memory(TINY, 0, held_out=1000, in_use=4) == 0
    assert shared_memory(TINY, 2, held_out=0, in_use=4) == (2 * LOOK_AHEAD + 4) * TINY.rank_batch * view
    assert shared_memory(TINY, 2, held_out=5, in_use=4) == shared_memory(TINY, 2, held_out=0, in_use=4) + 5 * image
    many = shared_memory(TINY, 2, held_out=10**6, in_use=4) - shared_memory(TINY, 2, held_out=0, in_use=4)
    assert many == (2 * LOOK_AHEAD + 1) * TINY.eval.batch * image


@pytest.mark.dist
def test_a_worker_makes_its_images_in_shared_memory_and_a_process_alone_does_not(dataset: Dataset) -> None:
    class Shared(Batches[bool]):
        def __getitem__(self, number: int) -> Any:
            return room(2, 8, 8, 3).is_shared(), room(0, 8, 8, 3).shape

    for workers in (0, 1):
        (found,) = load(Shared(), range(1), workers=workers, pin_memory=False)
        assert found == (workers > 0, (0, 8, 8, 3))
