import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shards.errors import ShardError
from shards.parallel import AHEAD, allowed_cores, mapping
from tests.running import TIMEOUT


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert allowed_cores() == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert len(allowed_cores()) == os.cpu_count()


def test_work_is_taken_as_it_is_needed_and_done_in_order_on_one_process() -> None:
    with mapping(1) as spread:
        assert list(spread(abs, iter([-3, 2, -1]))) == [3, 2, 1]


@pytest.mark.dist
def test_work_is_taken_as_it_is_needed_and_done_in_order_on_several_processes() -> None:
    taken = []

    def work() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield -number

    with mapping(2) as spread:
        results = spread(abs, work())
        assert next(results) == 0
        assert len(taken) <= 2 * AHEAD + 2
        assert list(results) == list(range(1, 100))


@pytest.mark.dist
def test_a_process_does_not_import_what_the_program_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.heavy"], capture_output=True, text=True, check=True, timeout=TIMEOUT
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2
    assert not any({"wave", "torch", "numpy"} & set(modules) for modules in lines)


@pytest.mark.dist
def test_a_process_that_is_killed_is_said() -> None:
    with pytest.raises(ShardError, match="was killed, most often for want of memory"), mapping(2) as spread:
        list(spread(_die, range(3)))


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
