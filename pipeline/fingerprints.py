"""Hashes that tell data, weights and views from others, and the names under which a job, a checkpoint and a store hold
them."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

DATA: Final = "training data"
CLASSES: Final = "names of the classes"  # in the order of their numbers
VIEWS: Final = "version of views"  # `pipeline/data/version.py`
TEACHER: Final = "teacher's weights"
START: Final = "starting weights"


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of weights: of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged_sha256(path: Path) -> str:
    """Return the hash of a file that many jobs of this process ask for: read again only where it was written."""
    status = path.stat()
    return _sha256_of(path.resolve(), status.st_mtime_ns, status.st_size)


@cache
def _sha256_of(path: Path, mtime_ns: int, size: int) -> str:
    return file_sha256(path)


def json_sha256(value: Any) -> str:
    """Return the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
