"""Encoded bytes to pixels: which formats, which colours, how large, and what is no image."""

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import FORMATS, MAX_PIXELS, decode
from shards.errors import SampleError

PIXELS = np.linspace(0, 255, 12 * 20 * 3).astype(np.uint8).reshape(12, 20, 3)
PHOTO = Image.fromarray(PIXELS)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Return the header of a PNG, and what is named beside it; of pixels there are none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_comes_back_in_colour(format: str) -> None:
    options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}[format]
    image = decode(encoded(PHOTO, format, **options), "a")
    assert (image.mode, image.size) == ("RGB", (20, 12))
    off = np.abs(np.asarray(image).astype(int) - PIXELS).max()
    assert off <= (20 if format == "JPEG" else 0)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG")],
)
def test_every_kind_of_colour_becomes_rgb(mode: str, format: str) -> None:
    image = decode(encoded(PHOTO.convert(mode), format), "a")
    assert (image.mode, image.size) == ("RGB", (20, 12))


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (MAX_PIXELS + 1, 1), (12_000, 12_000)])
def test_an_image_larger_than_the_limit_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(SampleError) as caught:
        decode(png(width, height), "huge")
    assert str(caught.value) == f"sample 'huge': {width}x{height} pixels, more than {MAX_PIXELS}."


def test_a_bomb_of_billions_of_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(SampleError, match=r"sample 'bomb': .*(exceeds limit|more than)"):
        decode(png(100_000, 100_000), "bomb")


def test_an_image_of_the_limit_is_not_refused_for_its_size() -> None:
    with pytest.raises(SampleError, match=r"cannot be decoded \(image file is truncated"):
        decode(png(10_000, MAX_PIXELS // 10_000), "large")


def test_text_in_an_image_that_unfolds_to_megabytes_is_refused() -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(SampleError, match="sample 'text': cannot be decoded"):
        decode(png(4, 4, text), "text")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        pickle.dumps(PIXELS),
        encoded(PHOTO, "JPEG")[:200],
        encoded(PHOTO, "PNG")[:-40],
        png(4, 4),
        encoded(PHOTO, "GIF"),
        encoded(PHOTO, "BMP"),
        encoded(PHOTO, "TIFF"),
        encoded(PHOTO, "PPM"),
    ],
    ids=["nothing", "text", "pickle", "cut JPEG", "cut PNG", "no pixels", "GIF", "BMP", "TIFF", "PPM"],
)
def test_what_is_no_image_of_these_formats_is_refused_with_its_name(content: bytes) -> None:
    with pytest.raises(SampleError, match=r"^sample 'n0123/a': cannot be decoded \(.+\)\.$"):
        decode(content, "n0123/a")
