"""Bytes of a sample, by number: one positional read out of a tar, checked against the index.

A tar behind a URL is read out of the cache, where it is fetched first; one that was never read is indexed when it
arrives. What is expected to be read soon is fetched meanwhile, and nothing is held that nobody expects.
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final

from shards.arrange import shown
from shards.cache import written
from shards.errors import DamagedFile, SampleError, ShardError
from shards.files import open_regular
from shards.index import Index, write_part
from shards.locks import locked
from shards.members import index_tar
from shards.places import LIMIT

OPEN_FILES: Final = 128  # a window of samples spans tens of shards; the usual limit is 1024 files a process
FETCHING: Final = 4  # shards that a process fetches beside each other

Asked = SimpleQueue[tuple[int, Future[int]] | None]  # shards behind URLs; None ends a thread that fetches


class Reader:
    """Reads samples of one split.  One object a process: it keeps files open until it is closed or forgotten."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first
        self._coming: dict[int, Future[int]] = {}  # shards behind URLs: those held, and those that are fetched
        self._expected: dict[Hashable, frozenset[int]] = {}
        self._asked: Asked = SimpleQueue()
        self._threads: list[Thread] = []

    def read(self, sample: int) -> bytes:
        """Return the encoded image of `sample`.

        Raises ShardError if the tar cannot be had, opened or read, SampleError if its bytes are not those of the index.
        """
        shard = self.index.shard_of(sample)
        descriptor = self._open(shard)  # after which its row is known
        row = self.index.row(sample)
        try:
            content = os.pread(descriptor, int(row["length"]), int(row["offset"]))
        except OSError as error:
            raise ShardError(
                f"{self.index.tar(shard)}: {error.strerror}, at byte {row['offset']}. See to the disk, and go on."
            ) from error
        if zlib.crc32(content) != row["crc32"]:
            raise SampleError(
                f"{self.index.tar(shard)}: sample {self.index.key(sample)!r} at byte "
                f"{row['offset']} has CRC {zlib.crc32(content):#010x}, the index says {int(row['crc32']):#010x}. "
                f"Copy this shard again, or check all: vitrail shards verify {self.index.dataset}"
            )
        return content

    def expect(self, who: Hashable, shards: Iterable[int]) -> None:
        """Have the shards that `who` reads next, in order of use, fetched meanwhile; give up what nobody expects."""
        if not self.index.cache:
            return
        expected = tuple(shards)
        self._expected[who] = frozenset(expected)
        for shard in expected:
            self._fetch(shard)
        held = frozenset().union(*self._expected.values())
        for shard, coming in list(self._coming.items()):
            if shard not in held and (coming.cancel() or coming.done()):
                del self._coming[shard]
                _let_go(coming)

    def _open(self, shard: int) -> int:
        if self.index.cache:
            return self._fetch(shard).result()
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) >= OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        path = Path(self.index.tar(shard))
        try:
            with open_regular(path) as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}. The index names this shard; copy it here.") from error
        except DamagedFile as error:
            raise ShardError(str(error)) from error
        self._descriptors[shard] = descriptor
        return descriptor

    def _fetch(self, shard: int) -> Future[int]:
        if shard not in self._coming:
            coming: Future[int] = Future()
            self._coming[shard] = coming
            self._asked.put((shard, coming))
            if len(self._threads) < FETCHING:  # of this process: a worker begins them after it was forked
                self._threads.append(Thread(target=_serve, args=(self.index, self._asked), daemon=True))
                self._threads[-1].start()
        return self._coming[shard]

    def close(self) -> None:
        """Close what is open, and end the threads that fetch; what one is at is closed as soon as it is there."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        self._expected.clear()
        while self._coming:
            coming = self._coming.popitem()[1]
            coming.cancel()
            coming.add_done_callback(_let_go)
        for _ in self._threads:
            self._asked.put(None)
        self._threads, self._asked = [], SimpleQueue()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> Index:
        return self.index  # descriptors do not travel to another process

    def __setstate__(self, index: Index) -> None:
        self.__init__(index)  # type: ignore[misc]


def _serve(index: Index, asked: Asked) -> None:
    """Fetch what is asked for, until None is; no process waits for it at its end.

    It knows nothing of its reader, which could never be forgotten otherwise.
    """
    while order := asked.get():
        shard, coming = order
        if coming.set_running_or_notify_cancel():
            try:
                coming.set_result(arrive(index, shard))
            except BaseException as error:  # is raised where the shard is read
                coming.set_exception(error)


def _let_go(coming: Future[int]) -> None:
    """Close a shard that was fetched, which the cache may remove then."""
    if not coming.cancelled() and not coming.exception():
        os.close(coming.result())


def arrive(index: Index, shard: int) -> int:
    """Return a descriptor of a shard behind a URL, which is in the cache then, and indexed.  Raises ShardError."""
    assert index.cache, "a shard that arrives comes through the cache"
    url = index.tar(shard)
    descriptor = index.cache.open(url, index.shards[shard].bytes or None)
    if index.known is None and not index.part_file(shard).exists():
        try:
            with written(index.folder):
                index_part(index, shard, index.cache.path(url))
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, ShardError):
                raise ShardError(f"{url}: {error}") from error
            raise
    return descriptor


def index_part(index: Index, shard: int, tar: Path) -> None:
    """Write the rows of a shard that arrived.  Raises ShardError unless it is what was said of it."""
    part = index.part_file(shard)
    part.parent.mkdir(parents=True, exist_ok=True)  # for the lock
    with locked(part.with_suffix(".lock"), timeout=LIMIT):
        if part.exists():  # another process was faster
            return
        contents = index_tar(tar, index.labels)
        if contents.names and contents.names != index.labels.names:
            raise ShardError(
                f"its labels are names ({shown(contents.names)}), and no shard alone can number them. Give the names "
                f"of all classes, a line each: --data.class-names FILE"
            )
        if len(contents.rows) != index.shards[shard].samples:
            raise ShardError(
                f"holds {len(contents.rows)} samples, the list of lengths says {index.shards[shard].samples}. The list "
                f"is of other tars; name these one by one, or by a pattern, and it is not asked."
            )
        write_part(part, contents)
