"""The loader: batches prepared ahead of use, by worker processes that end with the process that started them.

It has one iterator for the whole run, from the first step to the last: no work stops at the end of an epoch, and
resuming is starting the iterator at another step. It is never given to `accelerator.prepare`, which would split it a
second time.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import Any, Final, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.data.batch import Batch
from pipeline.library_internals import end_workers

T = TypeVar("T")
LOOK_AHEAD: Final = 4  # batches that a loader worker prepares before they are asked for


class StepSampler(Sampler[tuple[int, int]]):
    """The (step, virtual rank) of the batches of a process, in order."""

    def __init__(self, steps: Sequence[int], virtual_ranks: range) -> None:
        self.steps, self.virtual_ranks = steps, virtual_ranks

    def __len__(self) -> int:
        return len(self.steps) * len(self.virtual_ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, rank) for step in self.steps for rank in self.virtual_ranks)


class Loader(DataLoader[Any]):
    """torch's loader, whose workers end with an iterator that failed.

    They ignore the signal that would end them at exit, which would wait for them; and the error of a worker holds on
    to the iterator whose end would end them.
    """

    def __iter__(self) -> Any:
        return self._ended(super().__iter__())

    @staticmethod
    def _ended(batches: Any) -> Iterator[Any]:
        try:
            yield from batches
        finally:
            end_workers(batches)


def load(batches: Dataset[Any], sampler: Any, *, workers: int, pin_memory: bool) -> Loader:
    """Return the loader of prepared batches: uint8 through shared memory, bounded look-ahead.

    Its workers live as long as one iterator: for training that is the whole run.
    """
    return Loader(
        batches,
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent, "a worker is started by a process"

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


class Feed:
    """The batches of a process, one after the other, and the time spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds_waited = 0.0

    def next_batch(self) -> Batch:
        """Return the next batch."""
        started = time.perf_counter()
        batch = next(self._batches)
        self.seconds_waited += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the loader's workers: a loader does so when its iterator is forgotten, at exit it would be too late."""
        self._batches = iter(())
