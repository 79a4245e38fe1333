"""Locks between processes, also on file systems that have none.

A lock of the system's ends with the process that has it, however that ends. NFS without lockd and Lustre without
`-o flock` have no such locks. There the lock is a file, LOCK.soft, which names its process and host. A kill leaves it;
filelock takes it over where it can tell that its process is gone, elsewhere a message says which file to remove.
"""

import contextlib
import errno
import fcntl
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from shards.errors import ShardError

LACKING: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks says
ANSWER: Final = 30.0  # seconds to answer in; where the lock server is gone, even LOCK_NB waits in the kernel for good
POLL: Final = 0.1  # seconds between two looks at a lock


class Held(ShardError):
    """Another process has a lock.  `remedy` says what to do."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        super().__init__(f"{path}: another process has this lock. {remedy}")

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str]]:
        return type(self), (self.path, self.remedy)


@contextlib.contextmanager
def locked(path: Path, *, timeout: float, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep others out who ask for the lock `path`, once they let it go.  `say` is told of a file system without locks.

    timeout: seconds to wait for them; below 0, for good. Raises Held after it, ShardError where the file system does
    not answer, OSError where the file cannot be made.
    """
    lock: BaseFileLock = FileLock(path, poll_interval=POLL)
    with path.open("ab") as file:
        if not has_locks(file.fileno(), path):
            lock = SoftFileLock(f"{path}.soft", poll_interval=POLL)
            if say:
                say(f"{path.parent}: its file system has no locks. Instead, {lock.lock_file} is there during the work.")
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        remedy = _remedy(Path(lock.lock_file)) if isinstance(lock, SoftFileLock) else "End it, or wait."
        raise Held(path, remedy) from error
    try:
        yield
    finally:
        lock.release()


def hold(descriptor: int, path: Path) -> None:
    """Keep an open file from those who `seize` it, until it is closed; without locks, they cannot know.

    Raises ShardError where the file system does not answer.
    """
    try:
        _flock(descriptor, fcntl.LOCK_SH, path)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def seize(descriptor: int, path: Path) -> bool:
    """Return whether an open file is ours to remove: nobody holds it, and who begins to waits until it is closed.

    Without locks it always is: who has a file open reads on in it when it is removed, but from another host over NFS.
    Raises ShardError where the file system does not answer.
    """
    try:
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LACKING:
            raise
    return True


def has_locks(descriptor: int, path: Path) -> bool:
    """Return whether the file system of an open file has locks.  Raises ShardError where it does not answer."""
    try:
        _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, path)
    except (BlockingIOError, PermissionError):  # another process has it
        return True
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return False
    return True


def _flock(descriptor: int, operation: int, path: Path) -> None:
    """Do as fcntl.flock does, but raise ShardError where it does not come back."""
    answers: list[OSError | None] = []

    def ask() -> None:
        try:
            fcntl.flock(descriptor, operation)
            answers.append(None)
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # left behind where it hangs: no signal reaches it
    thread.start()
    thread.join(ANSWER)
    if not answers:
        raise ShardError(
            f"{path}: its file system does not answer to a request for a lock, asked for {ANSWER:g} s. Of NFS, the "
            f"lock server (lockd) may be gone. Have it mended, or name a folder on another file system."
        )
    if answers[0]:
        raise answers[0]


def _remedy(soft: Path) -> str:
    """Return what to do about a soft lock, which has a line for its process and one for its host."""
    try:
        process, host = soft.read_text(encoding="ascii").splitlines()[:2]
        gone = host == platform.node() and not psutil.pid_exists(int(process))
    except (OSError, ValueError):  # removed or written at this moment, or nothing of ours
        return f"End it, or wait. If it is gone, remove {soft}"
    if gone:
        return f"It was process {process} of this host, which is gone: remove {soft}"
    return f"It is process {process} of {host}: end it, or wait. If it is gone, remove {soft}"
