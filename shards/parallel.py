"""Work spread over processes, or done in this one where one is enough."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any


@contextmanager
def mapping(
    processes: int, prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` over so many processes, each of which was prepared."""
    if processes == 1:
        if prepare:
            prepare(*arguments)
        yield map
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=prepare, initargs=arguments) as pool:
        yield pool.map
