"""Files of ours: written so that a kill leaves the old one or the new one, never half of one, and read by their form.

What lies on a disk may be anything: a file that a kill cut off, an edited one, a pipe. A reader names the form that it
expects, a type; what does not have it is damaged, and never half believed.
"""

import json
import os
import platform
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

import msgspec
import psutil

from shards.errors import DamagedFile

T = TypeVar("T")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name its file: one of a disk that is full, or that fails, names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file that becomes `path` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half written in a folder.

    What another machine began stays: whether its process is dead cannot be known here.
    """
    for left in folder.glob(f".*.{platform.node()}.*.tmp"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it, and only a file: a pipe would wait for good, a device has no end.

    Raises OSError where it cannot be opened, DamagedFile for what is no regular file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DamagedFile(path, "not a regular file")
    return file


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with a final newline."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, form: type[T]) -> T:
    """Return the value of a JSON file, of a form: a type, most often a TypedDict; it may hold more than is named there.

    Raises FileNotFoundError where there is none, another OSError where the system does not give it, and DamagedFile for
    what has another form.
    """
    with naming(path), open_regular(path) as file:
        content = file.read()
    try:
        return formed(content, form)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, str(error)) from error


class Lines(NamedTuple, Generic[T]):
    """The lines of a file of JSON lines: those of the form, and the text of the others."""

    good: list[T]
    damaged: list[bytes]


def read_json_lines(path: Path, form: type[T]) -> Lines[T]:
    """Return the lines of a file, none where there is no file.  The half line of a process that was killed is none.

    Raises OSError where the system does not give it, DamagedFile for what is no file.
    """
    lines: Lines[T] = Lines([], [])
    try:
        with naming(path), open_regular(path) as file:
            *whole, rest = file.read().split(b"\n")
    except FileNotFoundError:
        return lines
    for line in (*whole, rest):
        try:
            lines.good.append(formed(line, form))
        except (ValueError, RecursionError):
            if line is not rest:
                lines.damaged.append(line)
    return lines


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write JSON lines to `path` atomically."""
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def formed(text: bytes, form: type[T]) -> T:
    """Return the value of a JSON text, of a form.  Raises ValueError or RecursionError for what has another."""
    value: T = json.loads(text)  # which knows NaN, as our writer does
    msgspec.convert(value, form)  # drops what a form does not name: asked for its complaint, a ValueError, alone
    return value


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
