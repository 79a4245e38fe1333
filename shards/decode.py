"""The door between bytes and pixels: whatever bytes come, an RGB image or a SampleError that says what they are.

A usual JPEG is decoded by libjpeg-turbo right into an array. What is another format, and what libjpeg-turbo has any
doubt about, is Pillow's, which is slower and says what is wrong; where both can, their pixels are equal.
What each format and kind of colour becomes is in `docs/data.md`. Everything is bounded before it is done: the bytes,
the pixels of the image and of whatever is made of it on the way to a view, and what a format lets a file ask for beside
its pixels.
"""

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.errors import SampleError

FORMATS: Final[Mapping[str, tuple[str, ...]]] = {  # as Pillow names them: usual endings
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
IMAGE_EXTENSIONS: Final = tuple(ending for endings in FORMATS.values() for ending in endings)

MAX_BYTES: Final = 64 * 2**20  # of an encoded image
MAX_PIXELS: Final = 100_000_000  # the largest image of ImageNet-1k has 29 million; a bomb has billions
MAX_ELONGATION: Final = 100  # of the sides: the shorter one is scaled to a view's, the other one with it
MAX_SCANS: Final = 100  # of a progressive JPEG, which passes over all pixels in each; encoders write about ten
MAX_SEGMENTS: Final = 10_000  # of a JPEG in which scans are counted one by one
MAX_EXIF: Final = 2**16  # bytes: one segment of a JPEG; Pillow reads its tables, which can overlap, in memory
MAX_TIFF_TABLES: Final = 2**21  # bytes of a TIFF that are read before its pixels, for the same reason
SLOW_DECODERS: Final = ("ppm", "ppm_plain", "bmp_rle")  # Pillow's own, in Python
MAX_SLOW_PIXELS: Final = 1_000_000

USUAL_COLOURS: Final = ("YCbCr", "Gray", "RGB")  # of a JPEG, as libjpeg-turbo names them
SIXTEEN_BITS: Final = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names for 16-bit grey

MARKER: Final = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # of a JPEG, but those that stand within a scan

SIGNATURES: Final = (  # how the formats begin, and what else is found under an image's name; in lower case
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89png", "PNG"),
    (0, b"riff", "WEBP"),
    (0, b"gif8", "GIF"),
    (0, b"bm", "BMP"),
    (0, b"ii*\0", "TIFF"),
    (0, b"mm\0*", "TIFF"),
    (0, b"ii+\0", "TIFF"),  # BigTIFF
    (0, b"mm\0+", "TIFF"),
    (0, b"ii\0*", "TIFF"),  # wrong, and read by Pillow
    (0, b"mm*\0", "TIFF"),
    *((0, b"p%d" % number, "PPM") for number in range(1, 7)),
    (0, b"<!doctype", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "XML (an SVG, or an error message of a server)"),
    (0, b"<svg", "SVG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (fetch its file: git lfs pull)"),
    (0, b"%pdf", "PDF"),
    (0, b"pk\x03\x04", "a zip"),
    (0, b"rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (257, b"ustar", "a tar"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x00\x00\x00\x0cjp  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cjxl ", "JPEG XL"),
    (0, b"8bps", "PSD"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "a video, or an image of its kind"),
)


class Refused(Exception):
    """An image is beyond a bound or has no meaning in 8 bits; the text goes on from the name of its format."""


def decode(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the image as RGB, uint8 [H, W, 3]; `name` is for the message.

    Raises SampleError for whatever is no usable image.
    """
    found = kind_of(content)
    try:
        _check_bytes(content, found)
        if found == "JPEG" and (pixels := _usual_jpeg(content)) is not None:
            return pixels
        if found == "JPEG" and (size := _exif_bytes(content)) > MAX_EXIF:
            raise Refused(f"with {size:,} bytes of EXIF, more than {MAX_EXIF:,}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which does not matter for pixels
            file = _Tables(content) if found == "TIFF" else io.BytesIO(content)
            with Image.open(file, formats=tuple(FORMATS)) as image:
                found = str(image.format)
                if isinstance(file, _Tables):
                    file.left += len(content)  # for the pixels
                _check_pixels(image)
                return np.array(_to_rgb(image))
    except MemoryError:  # of this machine, and nothing the sample is to blame for: all it asks for is bounded
        raise
    except Refused as error:
        raise SampleError(f"sample {name!r}: {found}, {error}.") from error
    except Image.UnidentifiedImageError as error:
        reason = "a header that is cut off or damaged" if found in FORMATS else f"not read; {', '.join(FORMATS)} are"
        raise SampleError(f"sample {name!r}: {found}, {reason}.") from error
    except Exception as error:  # decoders raise what comes to their mind: struct.error, IndexError, ...
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise SampleError(f"sample {name!r}: {found} that cannot be decoded ({reason}).") from error


def _usual_jpeg(content: bytes) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG; None for one of odd colours, damaged or beyond a bound, which Pillow looks at."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in USUAL_COLOURS or _beyond(int(width), int(height)):
            return None
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError:  # what Pillow makes of it, and says of it, counts
        return None


def kind_of(content: bytes) -> str:
    """Return what bytes look like: one of the formats, or words for what is none."""
    if not content:
        return "empty"
    start = content[:512].lstrip().lower()
    for position, signature, kind in SIGNATURES:
        if start[position:].startswith(signature):
            return kind
    return "no image" if content.strip(b"\0") else "nothing but zeros"


def _check_bytes(content: bytes, kind: str) -> None:
    """Refuse what would cost much before its size is known.  Raises Refused."""
    if len(content) > MAX_BYTES:
        raise Refused(f"of {len(content):,} bytes, more than {MAX_BYTES:,}")
    if kind == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
        _check_scans(content)


def _check_scans(content: bytes) -> None:
    """Refuse a JPEG of many scans: those before its end, as behind it may lie a video.  Raises Refused."""
    scans, at = 0, 2
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(content, at)
        if not marker or marker[1] == b"\xd9":
            return
        scans += marker[1] == b"\xda"
        if scans > MAX_SCANS:
            raise Refused(f"of more than {MAX_SCANS} scans")
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    raise Refused(f"of more than {MAX_SEGMENTS:,} segments")


def _exif_bytes(content: bytes) -> int:
    """Return the bytes of EXIF before the first scan of a JPEG."""
    size, at = 0, 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b""):
        length = int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] == 0xE1 and content[at + 4 : at + 10] == b"Exif\0\0":
            size += length
        at += 2 + max(length, 2)
    return size


class _Tables(io.BytesIO):
    """A TIFF of which only so much can be read: its tables can name the same bytes many times."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = MAX_TIFF_TABLES

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.left -= len(part)
        if self.left < 0:
            raise Refused(f"whose tables take more than {MAX_TIFF_TABLES:,} bytes")
        return part


def _check_pixels(image: Image.Image) -> None:
    """Refuse an image by its header.  Raises Refused."""
    width, height = image.size
    if bound := _beyond(width, height):
        raise Refused(f"of {width}x{height} pixels, more than {bound}")
    tiles: Any = getattr(image, "tile", ())
    if width * height > MAX_SLOW_PIXELS and any(tile[0] in SLOW_DECODERS for tile in tiles):
        raise Refused(
            f"of {width}x{height} pixels in a form that is slow to decode (text, more than 8 bits, or run lengths), "
            f"more than {MAX_SLOW_PIXELS:,}; store it in another one"
        )


def _beyond(width: int, height: int) -> str:
    """Return the bound that a width and a height are beyond, empty for none."""
    if width * height > MAX_PIXELS:
        return f"{MAX_PIXELS:,}"
    if max(width, height) > MAX_ELONGATION * min(width, height):
        return f"{MAX_ELONGATION} times as long as wide"
    return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame in 8-bit RGB.  Raises Refused where nothing says which values are black and white."""
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM"):  # 0 to 65535
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Refused("grey of 32 bits, of which nothing says what is black and what is white; store it in 8 or 16")
    return image.convert("RGB")
