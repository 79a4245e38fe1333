"""Samples that occur more than once: the same key, or the same bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.members import Rows

Marks = NDArray[np.uint64]
Places = NDArray[np.intp]


def marks_of(rows: Rows) -> Marks:
    """Return a mark of each image's bytes, length and CRC-32: the same for equal ones, and hardly ever for others."""
    return rows["length"].astype(np.uint64) << 32 | rows["crc32"]


def again(values: NDArray[Any]) -> tuple[Places, Places]:
    """Return the places of all values that stand before already, and where each of these stands first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    firsts = first[inverse]
    later = np.flatnonzero(firsts != np.arange(len(values)))
    return later, firsts[later]


def shared(first: NDArray[Any], second: NDArray[Any]) -> tuple[Places, Places]:
    """Return the places of all values of `second` that are in `first` too, and where each of these stands there."""
    values, places = np.unique(first, return_index=True)
    if not len(values):
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    near = np.searchsorted(values, second).clip(max=len(values) - 1)
    found = np.flatnonzero(values[near] == second)
    return found, places[near[found]]


def contrary(marks: Marks, labels: NDArray[np.int32]) -> tuple[Places, Places]:
    """Return the places of images whose bytes have another label elsewhere, and one such place of each."""
    order = np.lexsort((labels, marks))
    same, other = (values[order][1:] == values[order][:-1] for values in (marks, labels))
    found = np.flatnonzero(same & ~other)
    return order[found + 1], order[found]
