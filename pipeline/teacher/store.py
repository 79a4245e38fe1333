"""Stored teacher outputs: fixed-size records by (epoch, virtual rank, step, slot), read by any student.

A file holds one virtual rank's epoch, `epoch-0000/rank-000.bin`: a record a view, in the order of steps and slots,
and a CRC-32 at the end. Until it is whole it is `rank-000.part`, where a record that is not there yet is zero, beside
`rank-000.crc` with a CRC-32 for each step; so a kill at any moment leaves what was written, ranks and jobs write side
by side, and an epoch more is a file more. Steps whose CRC-32 differs are asked for again.
`store.json` says which views and which teacher the outputs belong to.

A record is little-endian: hard, the class plus one in 2 bytes; soft, k probabilities in fp16 and k classes in 2
bytes each, the most probable first.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe, view_fields
from pipeline.data.order import Order
from pipeline.errors import StoreError
from pipeline.fingerprints import DATA, TEACHER, VIEWS
from pipeline.store_head import StoreKind
from shards.files import sync_folder

OUTPUTS: Final = StoreKind("distill.store", "teacher outputs", version=2)  # 1 knew nothing of what makes a view
CRC_BYTES: Final = 4


def store_fingerprint(recipe: Recipe, fingerprints: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what a teacher's outputs depend on: fields of the recipe, data, views and teacher."""
    return {**view_fields(recipe), **{name: fingerprints[name] for name in (DATA, VIEWS, TEACHER)}}


class Store:
    """The outputs for an order's views; `width` is of a record, in numbers of 2 bytes.

    Raises StoreError where the folder holds outputs of others.
    """

    def __init__(self, folder: Path, order: Order, width: int, wanted: dict[str, Any]) -> None:
        self.folder = folder
        self._order = order
        self._shape = order.steps_per_epoch, order.rank_batch, width
        self._open: dict[int, _RankEpoch] = {}  # of each virtual rank, the epoch it is in
        OUTPUTS.begin(folder, wanted)

    def read(self, order_step: int, rank: int) -> NDArray[np.uint16] | None:
        """Return the records [B, width] of a virtual rank at a step of the order, None if one is not there.

        Raises StoreError if the file is not as it was written.
        """
        file, step = self._at(order_step, rank)
        records = file.records[step]
        return records if records[:, 0].all() else None

    def write(self, order_step: int, rank: int, records: NDArray[np.uint16]) -> None:
        """Add the records [B, width] of a virtual rank at a step.  Raises StoreError if the disk does not take them."""
        file, step = self._at(order_step, rank)
        file.write(step, records)

    def missing(self, epoch: int, rank: int) -> Sequence[int]:
        """Return the steps of the order whose outputs are not there, of a virtual rank's epoch."""
        path = path_of(self.folder, epoch, rank)
        if path.exists():
            return ()
        steps = range(epoch * self._order.steps_per_epoch, (epoch + 1) * self._order.steps_per_epoch)
        if not path.with_suffix(".part").exists():
            return steps
        return [step for step in steps if self.read(step, rank) is None]

    def _at(self, order_step: int, rank: int) -> tuple["_RankEpoch", int]:
        epoch, step = divmod(order_step, self._order.steps_per_epoch)
        file = self._open.get(rank)
        if file is None or file.epoch != epoch:
            file = self._open[rank] = _RankEpoch(path_of(self.folder, epoch, rank), epoch, self._shape)
        return file, step


class _RankEpoch:
    """One file: records [steps, B, width]."""

    def __init__(self, path: Path, epoch: int, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.epoch = epoch
        self.part, self.crcs = path.with_suffix(".part"), path.with_suffix(".crc")
        count = int(np.prod(shape))
        size = count * 2 + CRC_BYTES
        self.records: NDArray[np.uint16]
        if path.exists():
            content = np.memmap(path, np.uint8, mode="r")
            crc = int.from_bytes(content[-CRC_BYTES:].tobytes(), "little")
            if len(content) != size or zlib.crc32(content[:-CRC_BYTES].data) != crc:
                raise StoreError(
                    f"{path}: torn or altered (its checksum differs). Remove it, and its outputs are asked for again."
                )
            self.records = content[:-CRC_BYTES].view("<u2").reshape(shape)
            return
        self.records = np.zeros(shape, "<u2")
        if self.part.exists():
            written = np.fromfile(self.part, "<u2")[:count]
            self.records.reshape(-1)[: len(written)] = written
            crcs = np.zeros(shape[0], "<u4")
            if self.crcs.exists():
                known = np.fromfile(self.crcs, "<u4")[: shape[0]]
                crcs[: len(known)] = known
            for step, crc in enumerate(crcs.tolist()):
                if crc != zlib.crc32(self.records[step].data):
                    self.records[step] = 0

    def write(self, step: int, records: NDArray[np.uint16]) -> None:
        if self.path.exists():  # another job has finished it
            return
        self.records[step] = records
        block = self.records[step].tobytes()
        try:
            self.part.parent.mkdir(exist_ok=True)
            with open(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
                file.seek(step * len(block))
                file.write(block)
                with open(os.open(self.crcs, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as crcs:
                    crcs.seek(step * CRC_BYTES)
                    crcs.write(zlib.crc32(block).to_bytes(CRC_BYTES, "little"))
                if not self.records[..., 0].all():
                    return
                file.seek(self.records.nbytes)
                file.write(zlib.crc32(self.records.data).to_bytes(CRC_BYTES, "little"))
                os.fsync(file.fileno())
            self.part.replace(self.path)
            self.crcs.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except FileNotFoundError:  # another job finished it meanwhile, with the same outputs
            if not self.path.exists():
                raise
        except OSError as error:
            raise StoreError(
                f"{self.part}: cannot be written ({error.strerror}). Make room or mend the folder, and start the same "
                f"command again; the outputs that are there stay."
            ) from error


def path_of(folder: Path, epoch: int, rank: int) -> Path:
    """Return the file of a virtual rank's epoch."""
    return folder / f"epoch-{epoch:04d}" / f"rank-{rank:03d}.bin"
