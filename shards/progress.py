"""A progress bar on a terminal, nothing elsewhere: logs and scripts get no control characters."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from shards.errors import harmless

T = TypeVar("T")


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, with a bar on standard error while it is a terminal."""
    console = Console(stderr=True)
    yield from track(
        items,
        total=total,
        description=escape(harmless(what)),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
