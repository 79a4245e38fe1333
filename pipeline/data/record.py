"""Records: an image and the numbers that go with it, those of a batch in one piece of memory.

A batch is one tensor of bytes, a record a row. On the way from a loader worker it takes one file descriptor; it is
pinned as one; and it goes to the device in one copy, where its fields are views of it.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.devices import to_device
from pipeline.errors import LoaderError
from pipeline.library_internals import shared_bytes

SHARED_MEMORY_REMEDY: Final = (
    "Take fewer --data.workers (0 needs none), or give more: docker run --shm-size or --ipc=host; ulimit -n for more "
    "open files."
)
Item = tuple[str, type, tuple[int, ...]]  # name, type and shape of a field
TYPES: Final = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32, np.dtype(np.uint8): torch.uint8}


def view_record(size: int, row: tuple[int, ...] | None = None) -> np.dtype[np.void]:
    """Return what a record of a view holds, of S pixels a side (`pipeline/data/batch.py`).

    With the shape of a row (`pipeline/data/rows.py`), that stands in the place of the pixels.
    """
    return _record(
        ("row", np.float32, row) if row else pixels_of(size),
        label=(np.int64, ()),
        key=(np.int64, ()),  # the device draws erasing noise from it
        depth_key=(np.int64, ()),  # the same of the true epoch: stochastic depth goes on in a cyclic order
        erased=(np.int64, (4,)),  # what is erased (`pipeline/data/boxes.py`)
        partner=(np.int64, ()),  # which view it is mixed with, and how (`pipeline/data/mix.py`)
        cut=(np.int64, (4,)),
        lam=(np.float32, ()),
    )


def eval_record(size: int) -> np.dtype[np.void]:
    """Return what a record of an image that is evaluated holds, of S pixels a side."""
    return _record(pixels_of(size), label=(np.int64, ()), sample=(np.int64, ()))


def pixels_of(size: int) -> Item:
    """Return what a record holds of an image, of S pixels a side."""
    return ("pixels", np.uint8, (size, size, 3))


def _record(image: Item, **fields: tuple[type, tuple[int, ...]]) -> np.dtype[np.void]:
    # aligned, and padded to as much: torch takes no views of numbers that lie across words
    return np.dtype([*((name, *kind) for name, kind in fields.items()), image], align=True)


class Records(NamedTuple):
    """The records of a batch, on the host or on a device."""

    block: Tensor  # uint8 [B, bytes of a record]
    kind: np.dtype[np.void]

    @classmethod
    def room(cls, count: int, kind: np.dtype[np.void]) -> "Records":
        """Return records that are all zero.  Raises LoaderError as `room`."""
        return cls(room(count, kind.itemsize), kind)

    def first(self, count: int) -> "Records":
        """Return the first of the records."""
        return self._replace(block=self.block[:count])

    def to(self, device: torch.device) -> "Records":
        """Return the same records on a device, in one copy (`to_device`)."""
        return self._replace(block=to_device(self.block, device))

    @property
    def host(self) -> NDArray[np.void]:
        """The records [B] as numpy has them, field by name, to read and to write; of the host's alone."""
        return self.block.numpy().view(self.kind)[:, 0]

    def field(self, name: str) -> Tensor:
        """Return a field of all records, [B, ...], a view of them where they are."""
        assert self.kind.fields, "a record has fields"
        kind, offset = self.kind.fields[name][:2]
        values = self.block[:, offset : offset + kind.itemsize].view(TYPES[kind.base])
        return values.unflatten(1, kind.shape) if kind.shape else values[:, 0]


def room(count: int, *shape: int) -> Tensor:
    """Return zeros, uint8 [count, ...]: in a loader worker in the shared memory that they travel in.

    Raises LoaderError where that is full. On the way the error would be lost, and the run would wait for good.
    """
    worker = get_worker_info()
    if not (worker and count):
        return torch.zeros(count, *shape, dtype=torch.uint8)
    try:
        return shared_bytes(count, *shape)
    except RuntimeError as error:
        raise LoaderError(
            f"loader worker {worker.id}: no shared memory for a batch of {count * np.prod(shape) / 1e6:.1f} MB "
            f"({error}). {SHARED_MEMORY_REMEDY}"
        ) from error
