"""Bytes of a sample, by number: one positional read out of a local tar, checked against the index."""

import os
import zlib
from collections import OrderedDict
from typing import Final

from shards.errors import SampleError, ShardError
from shards.index import Index

OPEN_FILES: Final = 128  # a window of samples spans tens of shards; the usual limit is 1024 files a process


class Reader:
    """Reads samples of one split.  One object a process: it keeps file descriptors open."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first

    def read(self, sample: int) -> bytes:
        """Return the encoded image of `sample`.

        Raises ShardError if the tar cannot be opened, SampleError if its bytes are not those of the index.
        """
        row = self.index.rows[sample]
        shard = self.index.shard_of(sample)
        content = os.pread(self._open(shard), int(row["length"]), int(row["offset"]))
        if zlib.crc32(content) != row["crc32"]:
            raise SampleError(
                f"{self.index.folder / self.index.shards[shard].name}: sample {self.index.key(sample)!r} at byte "
                f"{row['offset']} has CRC {zlib.crc32(content):#010x}, the index says {int(row['crc32']):#010x}. "
                f"Copy this shard again, or check all: vitrail shards verify {self.index.folder}"
            )
        return content

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) >= OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        path = self.index.folder / self.index.shards[shard].name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}. The index names this shard; copy it here.") from error
        self._descriptors[shard] = descriptor
        return descriptor

    def __getstate__(self) -> Index:
        return self.index  # descriptors do not travel to another process

    def __setstate__(self, index: Index) -> None:
        self.__init__(index)  # type: ignore[misc]
