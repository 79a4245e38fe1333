"""The loader: batches prepared ahead of use, by worker processes that end with the process that started them.

It has one iterator for the whole run, from the first step to the last: no work stops at the end of an epoch, and
resuming is starting the iterator at another step. It is never given to `accelerator.prepare`, which would split it a
second time.
"""

import os
import shutil
import signal
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event, Thread, main_thread
from types import FrameType
from typing import Any, Final, NamedTuple, TypeVar

import psutil
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.record import eval_record, view_record
from pipeline.errors import LoaderError
from pipeline.library_internals import awaited_worker, end_workers, kill_workers, workers_of
from shards.errors import VitrailError
from shards.places import LIMIT

T = TypeVar("T")
LOOK_AHEAD: Final = 4  # batches that a loader worker prepares before they are asked for
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  where loader workers hand their batches over
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

LOOK_EVERY: Final = 5.0  # seconds between two looks after a worker that is waited for
PATIENCE: Final = 60.0  # seconds that one may do nothing
REMOTE_PATIENCE: Final = PATIENCE + 2 * LIMIT  # the same where it may wait for a network, which has limits of its own
ENDING: Final = 30.0  # seconds that one may take to end after its connection has
BUSY: Final = 0.1  # seconds of a processor's time that are more than nothing

LESS_MEMORY: Final = "Take fewer --data.workers, or smaller batches: more --virtual-ranks. "
FATES: Final[Mapping[int, tuple[str, str]]] = {
    signal.SIGKILL: (": out of memory?", LESS_MEMORY),
    signal.SIGBUS: (": out of shared memory, or a file that became shorter?", LESS_MEMORY),
    signal.SIGSEGV: (": a mistake in a library, or damaged memory?", ""),
}
OPEN_FILES: Final = "too many open files; raise it (ulimit -n 65536), or take fewer --data.workers"
LIMITS: Final = {
    "can't start new thread": "too many threads or processes; raise it (ulimit -u), or take fewer --data.workers",
    "open files": OPEN_FILES,
    "ancdata": OPEN_FILES,
    "Pin memory thread exited": f"most often {OPEN_FILES}",  # the thread that copies for a GPU said above what it met
}
CUT: Final = (ConnectionError, EOFError, FileNotFoundError)  # how a connection to a process ends that is no more there
FROM_WORKER: Final = "Caught "  # how torch begins an error that a worker raised
READ_CALLS: Final = ("0", "17", "63", "67")  # read and pread64, of x86-64 and of ARM


class StepSampler(Sampler[tuple[int, int]]):
    """The (step, virtual rank) of the batches of a process, in order, without those of the steps that are skipped."""

    def __init__(self, steps: Sequence[int], virtual_ranks: range, skipped: Collection[int] = ()) -> None:
        self.steps, self.virtual_ranks, self.skipped = steps, virtual_ranks, skipped

    def __len__(self) -> int:
        return (len(self.steps) - sum(step in self.steps for step in self.skipped)) * len(self.virtual_ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, rank) for step in self.steps if step not in self.skipped for rank in self.virtual_ranks)


class Failed(NamedTuple):
    """What a loader worker hands over instead of a batch."""

    error: VitrailError


class Prepared(Dataset[Any]):
    """Batches, with our own errors as values: torch would make each a traceback of its worker's."""

    def __init__(self, batches: Any, patience: float) -> None:
        self.batches = batches
        self.patience = patience  # seconds that a worker may do nothing

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.batches[item]
        except VitrailError as error:
            return Failed(error)
        except MemoryError:
            return Failed(LoaderError(f"no memory is left to prepare the batch {item}. {LESS_MEMORY}".strip()))


class Loader(DataLoader[Any]):
    """torch's loader, which gives batches or says in a sentence what became of its workers, and ends them.

    They ignore the signal that would end them at exit, which would wait for them; and the error of a worker holds on
    to the iterator whose end would end them.
    """

    def __iter__(self) -> Any:
        handler, said = signal.getsignal(signal.SIGCHLD), ""
        try:
            batches: Any = super().__iter__()
        except (OSError, RuntimeError) as error:
            said = repr(error)  # alone: the error holds on to the workers that were started
        finally:
            # torch's would raise at the end of a worker, whatever the training process is doing then
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        if said:
            raise LoaderError(
                f"{self.num_workers} loader workers cannot be started ({said}). Take fewer --data.workers, or raise "
                f"the limit that it is (ulimit -u for processes, -n for open files, -v for memory)."
            )
        assert isinstance(self.dataset, Prepared)
        return self._unfailed(batches, self.dataset.patience)

    @staticmethod
    def _unfailed(batches: Any, patience: float) -> Iterator[Any]:
        with closing(watched(batches, patience)) as handed_over:
            for batch in handed_over:
                if isinstance(batch, Failed):
                    raise batch.error
                yield batch


def watched(batches: Any, patience: float) -> Generator[Any, None, None]:
    """Yield the batches of an iterator, and end its workers with it.  Raises LoaderError as `Watch.take`."""
    if not workers_of(batches):
        yield from batches
        return
    watch = Watch(batches, patience)
    try:
        while (batch := watch.take()) is not None:
            yield batch
    except Exception:
        kill_workers(batches)
        raise
    finally:
        watch.end()
        end_workers(batches)


class Watch:
    """Looks after the workers of an iterator while the training process waits for one of them.

    It may wait in a call that never comes back: for the rest of a message of a worker that is dead, for a descriptor
    from one that is stopped. A signal brings it back: the system's at a worker's end, or one of a thread's that finds a
    worker idle.
    """

    def __init__(self, batches: Any, patience: float) -> None:
        self._batches = batches
        self._patience = patience
        self._workers = workers_of(batches)
        self._taken = 0
        self._waits = False
        self._idle = (0, "")  # the batch that one does nothing for, and what is said of it
        self._ended = Event()
        Thread(target=self._look_for_idle, daemon=True).start()

    def take(self) -> Any:
        """Return the next batch, None at the end.  Raises LoaderError for a worker that died, or does nothing."""
        handler = signal.signal(signal.SIGCHLD, self._look)
        self._taken += 1
        self._waits = True
        try:
            self._look()
            return next(self._batches, None)
        except Exception as error:
            self._waits = False
            if not isinstance(error, LoaderError):
                # a connection ends before its process, which takes its time on a busy machine
                cut = isinstance(error, CUT) and not str(error).startswith(FROM_WORKER)
                ended = wait([worker.sentinel for worker in self._workers], timeout=ENDING if cut else 1)
                for worker in self._workers:
                    if worker.sentinel in ended:
                        worker.join()  # it closes its pipe a moment before it can be asked for its exit code
                self._look_for_dead(well=False)
            for words, limit in LIMITS.items():
                if words in str(error):
                    raise LoaderError(f"The loader's workers met a limit of the system: {limit}.") from error
            raise
        finally:
            self._waits = False
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)

    def end(self) -> None:
        """Look after nobody any more."""
        self._ended.set()

    def _look(self, number: int = signal.SIGCHLD, frame: FrameType | None = None) -> None:
        self._look_for_dead()
        batch, said = self._idle
        if batch == self._taken:
            raise LoaderError(said)

    def _look_for_dead(self, *, well: bool = True) -> None:
        """Raise LoaderError for a worker that ended, but for one that ended `well`, as all do after the last batch."""
        for number, worker in enumerate(self._workers):
            if worker.exitcode or (worker.exitcode == 0 and not well):
                raise LoaderError(f"loader worker {number} (process {worker.pid}) {fate(worker.exitcode)}")

    def _look_for_idle(self) -> None:
        """Interrupt the training process when the worker that it waits for has done nothing for so long.

        Looks are counted, not time: the machine may have slept.
        """
        mark, worked, looks = (0, 0), Work(0, 0), 0
        while not self._ended.wait(LOOK_EVERY):
            taken, number = self._taken, awaited_worker(self._batches) if self._waits else None
            if number is None:
                continue
            try:
                worker = psutil.Process(self._workers[number].pid)
                work = work_of(worker)
                if mark != (taken, number) or work.seconds - worked.seconds > BUSY or work.traffic != worked.traffic:
                    mark, worked, looks = (taken, number), work, 0
                looks += 1
                if looks * LOOK_EVERY > self._patience:
                    self._idle = (
                        taken,
                        f"loader worker {number} (process {worker.pid}) {idleness(worker, self._patience)}",
                    )
                    signal.pthread_kill(main_thread().ident or 0, signal.SIGCHLD)
            except psutil.NoSuchProcess:  # its end is seen elsewhere
                continue


class Work(NamedTuple):
    """What a process has done so far: seconds of a processor's time, and calls and bytes of reading and writing."""

    seconds: float
    traffic: int


def work_of(process: psutil.Process) -> Work:
    """Return what a process has done so far: one that waits for a slow disk between its reads does something."""
    counters = process.io_counters() if hasattr(process, "io_counters") else ()  # not on every system
    return Work(sum(process.cpu_times()[:2]), sum(counters))


def fate(exitcode: int) -> str:
    """Return what became of a worker that ended with an exit code, negative for a signal, and what to do."""
    if exitcode >= 0:
        return f"ended with exit code {exitcode}; what it said stands above. Start the same command again to go on."
    cause, remedy = FATES.get(-exitcode, ("", ""))
    return f"was killed (signal {-exitcode}{cause}). {remedy}Start the same command again to go on."


def idleness(worker: psutil.Process, patience: float) -> str:
    """Return what a worker that does nothing waits for, as far as it can be known, and what to do."""
    states = {
        psutil.STATUS_DISK_SLEEP: "a disk or a network file system",
        psutil.STATUS_STOPPED: "SIGCONT: it is stopped",
    }
    awaited = file_read(worker.pid) or states.get(
        worker.status(), "something that does not come, or its batch was lost (see above)"
    )
    return (
        f"has done nothing for {patience:.0f} s: it waits for {awaited}. See whether the disk of the data answers; "
        f"without workers (--data.workers 0) none can block. Start the same command again to go on."
    )


def file_read(process: int) -> str:
    """Return the file that a process is reading, empty where it reads none or the system does not say."""
    try:
        call, *arguments = Path(f"/proc/{process}/syscall").read_text().split()
        file = os.readlink(f"/proc/{process}/fd/{int(arguments[0], 16)}") if call in READ_CALLS else ""
    except (OSError, IndexError):
        return ""
    return file if file.startswith("/") else ""


def shared_memory(recipe: Recipe, workers: int, held_out: int, in_use: int, row: tuple[int, ...] | None = None) -> int:
    """Return the bytes of shared memory that a process with so many loader workers takes at most.

    Those are the batches prepared ahead and those in use: of training so many, and of evaluation, where images are
    held out, one. `row` is the shape of a row of a frozen prefix, where there are some (`pipeline/data/rows.py`).
    """
    if not workers:
        return 0
    ahead, size = workers * LOOK_AHEAD, recipe.model.img_size
    views, images = (ahead + in_use) * recipe.rank_batch, min((ahead + 1) * recipe.eval.batch, held_out)
    record = max(view_record(size).itemsize, view_record(size, row).itemsize)
    return views * record + images * eval_record(size).itemsize


def free_shared_memory() -> int | None:
    """Return the bytes of shared memory that are free, None on a system that has it elsewhere."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None


def load(batches: Dataset[Any], sampler: Any, *, workers: int, pin_memory: bool, remote: bool = False) -> Loader:
    """Return the loader of prepared batches: uint8 through shared memory, bounded look-ahead.

    Its workers live as long as one iterator: for training that is the whole run. `remote`: they may wait for a network.
    """
    return Loader(
        Prepared(batches, REMOTE_PATIENCE if remote else PATIENCE),
        batch_size=None,  # an item is a batch already
        collate_fn=unchanged,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=LOOK_AHEAD if workers else None,
        worker_init_fn=become_worker,
    )


def unchanged(batch: T) -> T:
    """Return the batch; torch's default would turn every array into a tensor, each with a file descriptor."""
    return batch


def become_worker(worker: int) -> None:
    """Prepare a worker process for stop requests and for the end of the training process.

    A stop request must reach only the training process, which finishes its step and needs its loader for that. When
    that process ends, however it does, the worker ends at once: torch's own worker would wait for good for somebody
    to read a full pipe.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent, "a worker is started by a process"

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


class Feed:
    """The batches of a process, one after the other, and the time spent preparing them and waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds_waited = self.seconds_prepared = 0.0

    def next_batch(self) -> Batch | None:
        """Return the next batch, None at the end."""
        started = time.perf_counter()
        batch = next(self._batches, None)
        self.seconds_waited += time.perf_counter() - started
        self.seconds_prepared += batch.seconds if batch else 0.0
        return batch

    def close(self) -> None:
        """End the loader's workers: a loader does so when its iterator is forgotten, at exit it would be too late."""
        self._batches = iter(())
