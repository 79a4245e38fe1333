"""What is unusual about an image that can be decoded: worth knowing, and no fault."""

import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final

from PIL import Image

from shards.decode import FORMATS, SIXTEEN_BITS

TURNED: Final = "turned by EXIF (not followed)"
SMALL: Final = 32  # pixels: the side of CIFAR-10's images
LONG: Final = 4  # times as long as wide: a centre crop shows less than a quarter
ORIENTATION: Final = 0x0112  # EXIF's tag


def oddities(content: bytes) -> list[str]:
    """Return what is unusual about an image that `decode` takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            return list(_oddities(image))


def _oddities(image: Image.Image) -> Iterator[str]:
    tiles: Any = getattr(image, "tile", ())
    if image.mode in SIXTEEN_BITS or any(";16" in str(tile[3]) for tile in tiles):
        yield "16 bits a channel"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.mode in ("P", "PA"):
        yield "palette"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        yield "alpha (left out)"
    if _has_frames(image):
        yield "several frames (the first is taken)"
    tags: Any = getattr(image, "tag_v2", None)
    orientation = tags.get(ORIENTATION) if tags is not None else _orientation(image.info.get("exif", b""))
    if orientation not in (None, 0, 1):
        yield TURNED
    if min(image.size) < SMALL:
        yield f"a side under {SMALL} pixels"
    if max(image.size) > LONG * min(image.size):
        yield f"over {LONG} times as long as wide"


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of a second frame that is there, and damaged: decoders raise what comes to their mind
        return True


def _orientation(exif: bytes) -> int | None:
    """Return the orientation that EXIF says: Pillow would read all its tables, which can overlap, into memory."""
    tables = exif.removeprefix(b"Exif\0\0")
    order = "<" if tables.startswith(b"II") else ">"
    try:
        (at,) = struct.unpack_from(f"{order}I", tables, 4)
        (count,) = struct.unpack_from(f"{order}H", tables, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tables, entry)
            if tag == ORIENTATION:
                return int(value)
    except struct.error:  # cut off, or none
        pass
    return None
