"""Small tars for tests: members by name and content, and images to put into them."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.index import Index

Member = tuple[str, bytes] | tarfile.TarInfo  # with content, or a header alone


def picture(seed: int, form: str = "JPEG", size: int = 8) -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pack(path: Path, *members: Member, **options: Any) -> Path:
    """Make a tar of members, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def listed(folder: Path, index: Index) -> Path:
    """Put the tars of a split into a folder as `train`, with a list of lengths: behind a URL a stream."""
    folder.mkdir()
    for shard in range(len(index.shards)):
        shutil.copy(index.tar(shard), folder)
    train = {
        "filenames": [shard.name for shard in index.shards],
        "shard_lengths": [shard.samples for shard in index.shards],
    }
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": train}}))
    return folder
