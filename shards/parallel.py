"""Work spread over processes, or done in this one where one is enough; and the cores that there are for it."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from types import ModuleType
from typing import Any, Final, TypeVar

from shards.errors import ShardError

T = TypeVar("T")
Spread = Callable[[Callable[[Any], T], Iterable[Any]], Iterator[T]]
AHEAD: Final = 2  # pieces of work that wait for each process: what is done and not taken yet is held in memory


def allowed_cores() -> frozenset[int]:
    """Return the cores that this process may use: those of its job (srun, a cpuset, taskset), or all of the machine.

    Asked for when it is needed: a process may be bound to fewer meanwhile.
    """
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))  # macOS binds no process to cores


def keep_to(cores: Iterable[int]) -> None:
    """Keep this thread, and what it starts, to some cores, where the system can: macOS binds nothing."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)


@contextmanager
def mapping(
    processes: int, prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[Spread[Any]]:
    """Give a `map` over so many processes, each of which was prepared; it raises ShardError where one is killed.

    Results come in the order of the work, which is taken as it is needed.
    """
    if processes <= 1:
        if prepare:
            prepare(*arguments)
        yield map
        return
    # spawned, not forked: the command may have threads already (OpenBLAS, torch), which a fork leaves half behind
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=prepare, initargs=arguments) as pool:

        def spread(work: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
            waiting: deque[Future[T]] = deque()
            try:
                for item in items:
                    with _as_if_interactive():
                        waiting.append(pool.submit(work, item))
                    if len(waiting) > AHEAD * processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool as error:
                raise ShardError(
                    "a process that worked beside this one was killed, most often for want of memory. The same command "
                    "goes on where it was; fewer processes take less (--processes of `vitrail shards`)."
                ) from error
            finally:
                for one in waiting:
                    one.cancel()

        yield spread


@contextmanager
def _as_if_interactive() -> Iterator[None]:
    """Hide the program that runs while processes are started.

    A spawned process imports it anew, unless there is none, as in an interactive session: a recipe imports torch, which
    takes longer than most of our work, that needs nothing of it.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
