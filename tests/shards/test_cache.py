"""The cache and the network behind it: what passes is waited for, what does not is said, nothing is fetched twice."""

import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from shards import cache as caching
from shards import places
from shards.cache import Cache, limit_in_bytes
from shards.errors import ShardError
from tests.http_server import WELL, Answer, Asked, Server, serving
from tests.running import TIMEOUT
from tests.shards.test_locks import without_locks

SIZE = 300_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    rng = np.random.Generator(np.random.Philox(key=0))
    for name in ("train/0000.tar", "train/0001.tar", "train/0002.tar", "val/0000.tar"):
        (folder / name).write_bytes(rng.bytes(SIZE))
    with serving(folder) as served:
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience than people have: chunks of 64 KiB, two seconds for what does not come."""
    monkeypatch.setattr(places, "CHUNK", 2**16)
    monkeypatch.setattr(places, "LIMIT", 5.0)
    monkeypatch.setattr(places, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(places, "STALL", 2)


def held(cache: Cache, url: str, size: int | None = None) -> bytes:
    """Return the bytes of a tar that is fetched for them."""
    descriptor = cache.open(url, size)
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def wanted(server: Server, name: str) -> bytes:
    return (server.folder / name).read_bytes()


def test_a_tar_is_fetched_once_and_is_the_one_that_was_meant(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    for _ in range(2):
        for name in ("train/0000.tar", "val/0000.tar"):  # two that have one name
            assert held(cache, f"{server.url}/{name}", SIZE) == wanted(server, name)
    assert server.sent == 2 * SIZE
    assert sorted(path.suffix for path in cache.tars.iterdir()) == [".lock", ".lock", ".lock", ".tar", ".tar"]


def early(number: int, asked: Asked) -> Answer:
    return Answer(closes_after=1000) if number in (1, 3) else WELL


FAULTS = {
    "no fault": lambda number, asked: WELL,
    "server errors": lambda number, asked: Answer(status=503) if number % 2 else WELL,
    "too many requests": lambda number, asked: Answer(status=429) if number == 1 else WELL,
    "connections closed early": early,
    "a stall": lambda number, asked: Answer(stalls=3) if number == 2 else WELL,
    "no ranges": lambda number, asked: Answer(ranges=False),
    "an error for the question of its size": lambda number, asked: Answer(status=500) if number < 3 else WELL,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = FAULTS[fault]
    assert held(Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar") == wanted(server, "train/0000.tar")
    if fault == "no fault":
        assert [asked.start for asked in server.gets()] == list(range(0, SIZE, 2**16))


def test_a_server_that_is_gone_for_a_while_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LIMIT", TIMEOUT)
    with serving(server.folder) as other:
        url, port = f"{other.url}/train/0001.tar", int(other.url.rpartition(":")[2])
    cache = Cache(tmp_path / "cache", 10**9)
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.append(held(cache, url)))
    thread.start()
    time.sleep(1)
    with serving(server.folder, port):
        thread.join(TIMEOUT)
    assert came == [wanted(server, "train/0001.tar")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=404), r"0000\.tar: not there\."),
        (Answer(status=403), r"0000\.tar: refused \(.*403.*credentials"),
        (Answer(status=500), r"0000\.tar: cannot be read, tried for 5 s \(.*the same command again to go on"),
    ],
)
def test_what_does_not_pass_is_said(server: Server, tmp_path: Path, answer: Answer, words: str) -> None:
    server.fault = lambda number, asked: answer
    started = time.monotonic()
    with pytest.raises(ShardError, match=words):
        held(Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar")
    assert time.monotonic() - started < (3 if answer.status != 500 else 12)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"http://127\.0\.0\.1:9/x\.tar: cannot be read"):
        held(Cache(tmp_path / "cache", 10**9), "http://127.0.0.1:9/x.tar")


def test_another_file_under_the_same_name_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"{SIZE} bytes, the index says {SIZE + 1}. Another file lies there"):
        held(Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar", SIZE + 1)


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    cache, url = Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar"
    server.fault = lambda number, asked: Answer(status=404) if number > 2 else WELL
    with pytest.raises(ShardError):
        held(cache, url)
    server.fault = lambda number, asked: WELL
    server.asked.clear()
    assert held(cache, url) == wanted(server, "train/0000.tar")
    assert server.gets()[0].start == 2 * 2**16


def test_the_tar_that_was_used_longest_ago_makes_room_and_none_that_is_held(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2 * SIZE + 10)
    urls = [f"{server.url}/train/{number:04d}.tar" for number in range(3)]
    first = cache.open(urls[0])
    held(cache, urls[1])
    held(cache, urls[2])
    assert [cache.holds(url) for url in urls] == [True, False, True]
    os.close(first)
    time.sleep(0.02)
    held(cache, urls[2])  # used again
    held(cache, urls[1])
    assert [cache.holds(url) for url in urls] == [False, True, True]
    assert sum(path.stat().st_size for path in cache.tars.glob("*.tar")) <= cache.limit


def test_what_is_held_may_exceed_the_limit_and_nothing_waits_for_good(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", SIZE)
    descriptors = [cache.open(f"{server.url}/train/{number:04d}.tar") for number in range(3)]
    assert len(list(cache.tars.glob("*.tar"))) == 3
    for descriptor in descriptors:
        os.close(descriptor)
    held(cache, f"{server.url}/val/0000.tar")
    assert len(list(cache.tars.glob("*.tar"))) == 1


@pytest.mark.dist
def test_of_several_processes_one_fetches(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    url, folder = f"{server.url}/train/0002.tar", tmp_path / "cache"
    server.latency = 0.1

    def fetch() -> None:
        os._exit(held(Cache(folder, 10**9), url) != wanted(server, "train/0002.tar"))

    processes = [context.Process(target=fetch) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.sent == SIZE


@pytest.mark.dist
def test_a_process_that_is_killed_leaves_a_part_and_no_lock(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    cache, url = Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar"
    server.fault = lambda number, asked: Answer(stalls=60) if number == 3 else WELL
    process = context.Process(target=lambda: held(cache, url))
    process.start()
    while len(server.asked) < 4:
        time.sleep(0.01)
    process.kill()
    process.join()
    (part,) = cache.tars.glob("*.part")
    assert part.stat().st_size == 2 * 2**16
    assert held(cache, url) == wanted(server, "train/0000.tar")


def test_a_process_that_holds_a_fetch_and_does_nothing_is_not_waited_for_for_good(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "LIMIT", 0.2)
    cache, url = Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar"
    cache.tars.mkdir(parents=True)
    with (
        FileLock(cache.path(url).with_suffix(".lock")),
        pytest.raises(ShardError, match="another process fetches it, and nothing has come"),
    ):
        held(cache, url)


def test_a_cache_that_cannot_be_written_to_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")  # no folder
    with pytest.raises(ShardError, match=r": (Not a directory|File exists)\. Make room, or name another --data\.cache"):
        held(Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar")


def test_a_disk_that_is_full_is_no_fault_of_the_network(server: Server, tmp_path: Path) -> None:
    cache, url = Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar"
    cache.tars.mkdir(parents=True)
    cache.path(url).with_suffix(f".{SIZE}.part").symlink_to("/dev/full")
    with pytest.raises(ShardError, match=r"\.part: No space left on device\. Make room, or name another --data\.cache"):
        held(cache, url)
    assert len(server.gets()) == 1  # nothing is fetched again for it


def test_a_reader_holds_what_it_reads_by_a_lock_that_ends_with_it(server: Server, tmp_path: Path) -> None:
    cache, url = Cache(tmp_path / "cache", 10**9), f"{server.url}/train/0000.tar"
    descriptor = cache.open(url)
    with cache.path(url).open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_locks_the_oldest_makes_room_and_who_reads_it_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    cache = Cache(tmp_path / "cache", 2 * SIZE + 10)
    urls = [f"{server.url}/train/{number:04d}.tar" for number in range(3)]
    first = cache.open(urls[0])
    held(cache, urls[1])
    held(cache, urls[2])
    assert [cache.holds(url) for url in urls] == [False, True, True]
    assert os.pread(first, SIZE, 0) == wanted(server, "train/0000.tar")
    os.close(first)
    assert not list(cache.tars.glob("*.soft"))


@pytest.mark.parametrize(("text", "size"), [("200GB", 200e9), ("1.5tb", 1.5e12), ("10MB", 10e6)])
def test_a_limit_is_a_number_of_bytes(tmp_path: Path, text: str, size: float) -> None:
    assert limit_in_bytes(text, tmp_path) == size


def test_a_limit_is_a_share_of_what_is_free_and_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(bytes(500))
    usage = caching.shutil.disk_usage(tmp_path)._replace(free=1500)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: usage)
    assert limit_in_bytes("50%", tmp_path) == 1000


@pytest.mark.parametrize("text", ["", "GB", "many", "-5GB", "0%", "120%", "10", "nanGB"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"a number above 0|at most 100"):
        limit_in_bytes(text, tmp_path)
