"""Rows: what the frozen first part of a network gives of each image, kept by the sample's number.

`rows.bin` holds a row a sample, little-endian float32, which holds exactly what bf16 gives, too; `rows.crc` a CRC-32 of
each, 0 where there is none. A row is written before its CRC-32, so that whatever a kill, a full disk or another writer
leaves half done differs from it, and is computed again. Rows that are not there take no room. `store.json` says of
which images, views and weights they are.

Shapes: B images of one virtual rank, ... of one row.
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store_head import StoreKind

ROWS: Final = StoreKind("finetune.cache", "outputs of a frozen prefix", version=1)
BLOCK: Final = 512  # bytes of what a file system counts
FLOAT, CRC = np.dtype("<f4"), np.dtype("<u4")


@dataclass(frozen=True)
class Rows:
    """The rows in a folder.  It holds nothing open: workers, processes and runs read and write side by side."""

    folder: Path
    shape: tuple[int, ...]  # of one

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * FLOAT.itemsize

    def begin(self, samples: int, fingerprint: dict[str, Any]) -> None:
        """Make the files for so many samples where there are none.  Raises StoreError as `StoreKind.begin`."""
        ROWS.begin(self.folder, fingerprint)
        for path, size in ((self._rows, samples * self.bytes), (self._crcs, samples * CRC.itemsize)):
            with open(path, "ab") as file:
                file.truncate(size)

    @property
    def count(self) -> int:
        """How many rows are there."""
        return int(np.count_nonzero(np.fromfile(self._crcs, CRC)))

    def said(self, samples: int) -> str:
        """Return how much is kept of so many samples, in words."""
        return f"{self.folder}: {self.bytes / 1e3:,.1f} kB an image, {samples * self.bytes / 1e6:,.1f} MB of all"

    def missing_bytes(self, samples: int) -> int:
        """Bytes that rows of so many samples will take beside those that lie there."""
        there = self._rows.stat().st_blocks * BLOCK if self._rows.exists() else 0
        return max(0, samples * self.bytes - there)

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the rows [B, ...] of samples [B], and which of them are there [B].

        Raises StoreError if the files cannot be read.
        """
        rows, crcs = np.zeros((len(samples), *self.shape), FLOAT), np.zeros(len(samples), CRC)
        try:
            with open(self._rows, "rb") as held, open(self._crcs, "rb") as marks:
                for place, sample in enumerate(samples.tolist()):
                    os.preadv(marks.fileno(), [crcs[place : place + 1].data], sample * CRC.itemsize)
                    if crcs[place]:
                        os.preadv(held.fileno(), [rows[place].data], sample * self.bytes)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot be read ({error.strerror}). Mend it and start the same command again, or go on "
                f"without --finetune.cache."
            ) from error
        there = [crc != 0 and crc == zlib.crc32(row) for row, crc in zip(rows, crcs.tolist(), strict=True)]
        return rows, np.array(there, dtype=np.bool_)

    def write(self, samples: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Keep the rows [B, ...] of samples [B].  Raises StoreError if the disk does not take them."""
        rows = np.ascontiguousarray(rows, FLOAT)
        crcs = np.array([zlib.crc32(row) for row in rows], CRC)
        try:
            for path, values in ((self._rows, rows), (self._crcs, crcs)):
                with open(path, "r+b") as file:
                    for sample, value in zip(samples.tolist(), values, strict=True):
                        file.seek(sample * value.nbytes)
                        file.write(value.tobytes())
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot be written ({error.strerror}). Make room or mend the folder, and start the "
                f"same command again; the rows that are there stay."
            ) from error

    @property
    def _rows(self) -> Path:
        return self.folder / "rows.bin"

    @property
    def _crcs(self) -> Path:
        return self.folder / "rows.crc"
