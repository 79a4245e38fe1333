"""Locks where the file system has them, where it has none, and where it does not answer."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shards import locks
from shards.errors import ShardError
from shards.locks import Held, hold, locked, seize
from tests.running import TIMEOUT


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Have every file system of this process be one without locks."""

    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have every file system be one whose lock server is gone."""
    ends = threading.Event()
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: ends.wait())
    monkeypatch.setattr(locks, "ANSWER", 0.1)
    yield
    ends.set()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def refusal(lock: Path) -> Held:
    with pytest.raises(Held) as caught, locked(lock, timeout=0):
        pass
    return caught.value


def test_a_lock_of_the_system_keeps_others_out_while_it_is_held(lock: Path) -> None:
    said: list[str] = []
    with locked(lock, timeout=0, say=said.append):
        held = refusal(lock)
    assert str(held) == f"{lock}: another process has this lock. End it, or wait."
    assert str(pickle.loads(pickle.dumps(held))) == str(held)
    with locked(lock, timeout=0):
        pass
    assert said == []
    assert [path.name for path in lock.parent.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", locks.LACKING, ids=errno.errorcode.get)
def test_without_locks_a_file_is_the_lock_and_it_is_said(
    lock: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, number)
    said: list[str] = []
    with locked(lock, timeout=0, say=said.append):
        held = refusal(lock)
    (sentence,) = said
    assert sentence == f"{lock.parent}: its file system has no locks. Instead, {lock}.soft is there during the work."
    assert held.remedy.startswith(f"It is process {os.getpid()} of {platform.node()}")
    assert held.remedy.endswith(f": end it, or wait. If it is gone, remove {lock}.soft")
    with locked(lock, timeout=0):
        pass
    assert not Path(f"{lock}.soft").exists()


@pytest.mark.dist
def test_a_soft_lock_of_a_process_that_was_killed_here_is_taken_over(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)

    def die() -> None:
        with ExitStack() as stack:
            stack.enter_context(locked(lock, timeout=0))
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(TIMEOUT)
    assert Path(f"{lock}.soft").read_text().startswith(f"{process.pid}\n")
    with locked(lock, timeout=TIMEOUT):
        pass


def test_a_soft_lock_that_cannot_be_taken_over_names_the_file_to_remove(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    soft = Path(f"{lock}.soft")
    soft.write_text("12\nanother-host\n")
    assert refusal(lock).remedy == (f"It is process 12 of another-host: end it, or wait. If it is gone, remove {soft}")
    # more lines than filelock writes: it leaves such a file for a while, as it does all of them on NFS
    soft.write_text(f"{2**22 + 1}\n{platform.node()}\n1\n1\n")  # above the highest number of a process
    assert refusal(lock).remedy == f"It was process {2**22 + 1} of this host, which is gone: remove {soft}"
    soft.write_text("")
    assert refusal(lock).remedy == f"End it, or wait. If it is gone, remove {soft}"


@pytest.mark.usefixtures("silent")
def test_a_file_system_that_does_not_answer_is_not_waited_for(lock: Path) -> None:
    words = r"\.lock: its file system does not answer to a request for a lock, asked for 0\.1 s"
    with pytest.raises(ShardError, match=words), locked(lock, timeout=-1):
        pass
    with lock.open() as file:
        with pytest.raises(ShardError, match=words):
            hold(file.fileno(), lock)
        with pytest.raises(ShardError, match=words):
            seize(file.fileno(), lock)


def test_another_fault_of_a_lock_is_not_hidden(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(lock, timeout=0):
        pass
    with lock.open() as file:
        with pytest.raises(OSError, match="Input/output error"):
            hold(file.fileno(), lock)
        with pytest.raises(OSError, match="Input/output error"):
            seize(file.fileno(), lock)
