"""Damaged images of all formats through decode, training view and evaluation view: what comes out, and what it costs.

    python tests/bench/fuzz.py [FILES] [FIRST]

Ends with 1 if anything but pixels or a SampleError comes out, if a process dies, or beyond the bounds below. Of the
200,000 files that it tries unless told otherwise, more than 100,000 are of JPEG, PNG and WEBP.
"""

import base64
import io
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import simplejpeg
from numpy.random import Generator
from PIL import Image, PngImagePlugin
from rich.console import Console
from rich.table import Table

from pipeline.config import Augment
from pipeline.data.augment import augment, center
from shards.decode import decode
from shards.errors import SampleError

MOST_MEMORY: Final = 1_200  # MB of a process: an image at the limit of decode, in Pillow's own form and in RGB
MOST_SECONDS: Final = 10.0  # of one file
HANGS: Final = 120  # seconds of one file after which its process is ended
CHUNK: Final = 500  # files that a process takes at a time
SHOWN: Final = ("JPEG", "PNG", "WEBP")  # formats with a column of their own

SIZES: Final = (0, 1, 2, 3, 4, 5, 8, 10, 12, 14, 16, 20, 25, 26, 30, 40)
PNG_CHUNKS: Final = (b"IHDR", b"sRGB", b"gAMA", b"pHYs", b"iCCP", b"tRNS", b"cHRM", b"acTL", b"fcTL", b"fdAT", b"tEXt",
                     b"zTXt", b"iTXt", b"eXIf", b"PLTE", b"IEND", b"CgBI", b"tIME")  # fmt: skip
JPEG_MARKERS: Final = (0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
JPEG_NAMES: Final = (b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"Adobe", b"MPF\0",
                     b"http://ns.adobe.com/xap/1.0/\0")  # fmt: skip
ARITHMETIC: Final = base64.b64decode(  # cjpeg -arithmetic: 32 x 24, 4:2:0; no library of Python's writes such files
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNS"
    "Mj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T0//yQARCAAYACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AJeK0QKUeHLOHWbdw/HTpAF++T+9c3sVWjld83s1"
    "68jEf/Npburnz/8A/TqapAZ5nULPdmRwArC5SP0LSRUCKVgHi/nMBjH3LtqZ4s/uu6tWjpavqFV23caQ2YXjmkPWOZOI5CG/GTyP1ogH"
    "+mQG7fDX9xrCIy7r9D05JjMaxly0zTz/2Q=="
)
WEBP_CHUNKS: Final = (b"EXIF", b"ICCP", b"XMP ", b"ANIM", b"ANMF", b"VP8X", b"ALPH")


class Found(NamedTuple):
    """What became of a chunk of files."""

    kinds: Counter[tuple[str, str]]  # seed, and what came out
    wrong: list[tuple[int, str]]  # number of the file, and what came out that must not
    longest: float  # seconds
    megabytes: int  # the most that the process had so far


@cache
def seeds() -> dict[str, bytes]:
    """Return whole images, by name: each format, with each kind of colour and of structure."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    soft = rgb.resize((52, 37), Image.Resampling.BICUBIC)  # several rows of blocks, and no whole number of them
    turned: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    deep = Image.fromarray(rng.integers(0, 65536, (24, 32)).astype(np.uint16))
    text = PngImagePlugin.PngInfo()
    text.add_text("k", "v" * 50, zip=True)
    text.add_itxt("i", "ü")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    images: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "jpeg": ("JPEG", rgb, {"exif": exif.tobytes()}),
        "jpeg 4:4:4": ("JPEG", soft, {"subsampling": "4:4:4"}),
        "jpeg 4:2:2": ("JPEG", soft, {"subsampling": "4:2:2"}),
        "jpeg 4:2:0": ("JPEG", soft, {"subsampling": "4:2:0", "quality": 95}),
        "jpeg restarts": ("JPEG", soft, {"restart_marker_blocks": 2}),
        "jpeg rgb": ("JPEG", soft, {"keep_rgb": True}),
        "jpeg progressive": ("JPEG", soft, {"progressive": True}),
        "jpeg progressive 4:4:4": ("JPEG", soft, {"progressive": True, "subsampling": "4:4:4"}),
        "jpeg progressive grey": ("JPEG", soft.convert("L"), {"progressive": True}),
        "jpeg progressive restarts": ("JPEG", soft, {"progressive": True, "restart_marker_rows": 1}),
        "jpeg grey": ("JPEG", soft.convert("L"), {}),
        "jpeg cmyk": ("JPEG", rgb.convert("CMYK"), {}),
        "mpo": ("MPO", rgb, turned),
        "png": ("PNG", rgb, {"exif": exif.tobytes()}),
        "png palette": ("PNG", rgb.quantize(8), {"transparency": 0}),
        "png alpha": ("PNG", rgb.convert("RGBA"), {}),
        "png 16 bits": ("PNG", deep, {}),
        "png text": ("PNG", rgb, {"pnginfo": text}),
        "png animated": ("PNG", rgb, turned),
        "webp": ("WEBP", rgb, {"exif": exif.tobytes()}),
        "webp lossless": ("WEBP", rgb.convert("RGBA"), {"lossless": True}),
        "webp animated": ("WEBP", rgb, turned),
        "gif": ("GIF", rgb, {}),
        "gif animated": ("GIF", rgb, {**turned, "transparency": 0}),
        "bmp": ("BMP", rgb, {}),
        "bmp palette": ("BMP", rgb.quantize(16), {}),
        "tiff": ("TIFF", rgb, {"exif": exif.tobytes()}),
        "tiff lzw": ("TIFF", rgb, {"compression": "tiff_lzw"}),
        "tiff deflate": ("TIFF", rgb.convert("RGBA"), {"compression": "tiff_deflate"}),
        "tiff jpeg": ("TIFF", rgb, {"compression": "jpeg"}),
        "tiff group4": ("TIFF", rgb.convert("1"), {"compression": "group4"}),
        "tiff 16 bits": ("TIFF", deep, {}),
        "tiff pages": ("TIFF", rgb.copy(), {**turned, "append_images": [rgb.rotate(180)]}),
        "ppm": ("PPM", rgb, {}),
        "pgm 16 bits": ("PPM", deep, {}),
        "pbm": ("PPM", rgb.convert("1"), {}),
    }
    return {name: _encoded(image, format, options) for name, (format, image, options) in images.items()} | {
        "jpeg 4:4:0": simplejpeg.encode_jpeg(np.array(soft), colorsubsampling="440"),
        "jpeg 4:1:1": simplejpeg.encode_jpeg(np.array(soft), colorsubsampling="411"),
        "jpeg arithmetic": ARITHMETIC,
        "ppm plain": b"P3\n4 2\n255\n" + b"1 20 255\n" * 8,
    }


def _encoded(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def damaged(number: int) -> tuple[str, bytes]:
    """Return the name of a seed, and what became of it: a function of the number."""
    rng = np.random.default_rng(number)
    name = list(seeds())[number % len(seeds())]
    content = seeds()[name]
    for _ in range(int(rng.integers(1, 4))):
        content = WAYS[int(rng.integers(len(WAYS)))](content, rng)
    return name, content


def flip(content: bytes, rng: Generator) -> bytes:
    """Change some bytes, more often near the beginning."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6)) if changed else 0):
        end = len(changed) if rng.random() < 0.4 else min(len(changed), 160)
        changed[int(rng.integers(end))] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
    return bytes(changed)


def cut(content: bytes, rng: Generator) -> bytes:
    """Leave out the end."""
    return content[: int(rng.integers(len(content) + 1))]


def move(content: bytes, rng: Generator) -> bytes:
    """Put a piece where another one was."""
    if len(content) < 16:
        return content
    start, to, length = (int(rng.integers(len(content))) for _ in range(3))
    return content[:to] + content[start : start + length % 64] + content[to:]


def insert(content: bytes, rng: Generator) -> bytes:
    """Add a part of the format, most often one that means nothing there."""
    data = rng.integers(0, 256, int(rng.choice(SIZES))).astype(np.uint8).tobytes()
    if rng.random() < 0.5:
        data = bytes(len(data) // 2) + data[len(data) // 2 :]
    if content[:4] == b"\x89PNG":
        kind = PNG_CHUNKS[int(rng.integers(len(PNG_CHUNKS)))]
        chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        at = _chunk_starts(content)[int(rng.integers(len(_chunk_starts(content))))]
        return content[:at] + chunk + content[at:]
    if content[:2] == b"\xff\xd8":
        if rng.random() < 0.6:
            data = JPEG_NAMES[int(rng.integers(len(JPEG_NAMES)))] + data
        marker = JPEG_MARKERS[int(rng.integers(len(JPEG_MARKERS)))]
        return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + content[2:]
    if content[:4] == b"RIFF":
        body = content[12:] + WEBP_CHUNKS[int(rng.integers(len(WEBP_CHUNKS)))] + struct.pack("<I", len(data)) + data
        return content[:4] + struct.pack("<I", len(body) + 4) + content[8:12] + body
    at = int(rng.integers(len(content) + 1))
    return content[:at] + data + content[at:]


def _chunk_starts(content: bytes) -> list[int]:
    starts, at = [8], 8
    while at + 8 <= len(content):
        at += 12 + int.from_bytes(content[at : at + 4])
        starts.append(at)
    return starts


WAYS: Final[tuple[Callable[[bytes, Generator], bytes], ...]] = (flip, flip, flip, cut, move, insert, insert, insert)


def try_files(first: int, last: int) -> Found:
    """Do with files what training and evaluation do."""
    kinds: Counter[tuple[str, str]] = Counter()
    wrong, longest = [], 0.0
    settings = Augment(rand_ops=2)
    for number in range(first, last):
        name, content = damaged(number)
        signal.alarm(HANGS)
        began = time.perf_counter()
        try:
            image = decode(content, name)
            for view in (augment(image, 32, settings, np.random.default_rng(number)), center(image, 32, 0.875)):
                assert (view.shape, view.dtype) == ((32, 32, 3), np.uint8)
            outcome = "pixels"
        except SampleError as error:
            outcome = reason(str(error))
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
            wrong.append((number, outcome))
        longest = max(longest, time.perf_counter() - began)
        kinds[name, outcome] += 1
    signal.alarm(0)
    return Found(kinds, wrong, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def reason(sentence: str) -> str:
    """Return the kind of a refusal."""
    _, _, cause = sentence.partition("cannot be decoded (")
    if cause:
        return cause.partition(":")[0].rstrip(").")
    return "a bound" if "more than" in sentence else "not read"


def fuzz(files: int, first: int, processes: int) -> Found:
    """Try so many files from a number on."""
    kinds: Counter[tuple[str, str]] = Counter()
    wrong, longest, megabytes = [], 0.0, 0
    starts = range(first, first + files, CHUNK)
    with ProcessPoolExecutor(processes) as pool:
        chunks = [pool.submit(try_files, start, min(start + CHUNK, first + files)) for start in starts]
        for start, chunk in zip(starts, chunks, strict=True):
            try:
                found = chunk.result()
            except BrokenProcessPool:
                wrong.append(
                    (start, f"a process died, or was ended after {HANGS} s, in one of {CHUNK} files from here on")
                )
                break
            kinds += found.kinds
            wrong += found.wrong
            longest, megabytes = max(longest, found.longest), max(megabytes, found.megabytes)
    return Found(kinds, wrong, longest, megabytes)


def main() -> int:
    """Try the files and print a table."""
    files, first = (int(argument) for argument in (*sys.argv[1:3], *("200000", "0")[len(sys.argv) - 1 :]))
    found = fuzz(files, first, processes=1)
    by_outcome: Counter[str] = Counter()
    by_format: Counter[tuple[str, str]] = Counter()
    for (name, outcome), count in found.kinds.items():
        format = name.split()[0].upper()
        by_outcome[outcome] += count
        by_format[outcome, format if format in SHOWN else "others"] += count
    table = Table(title=f"{files:,} damaged files of {len(seeds())} seeds")
    columns = (*SHOWN, "others")
    for column in ("what came out", *columns):
        table.add_column(column)
    for outcome, _ in by_outcome.most_common():
        table.add_row(outcome, *(f"{by_format[outcome, format]:,}" for format in columns))
    table.add_section()
    table.add_row("all", *(f"{sum(by_format[outcome, format] for outcome in by_outcome):,}" for format in columns))
    Console().print(table)
    print(f"longest {found.longest:.2f} s, at most {found.megabytes:,} MB")
    for number, outcome in found.wrong[:20]:
        print(f"file {number}: {outcome}")
    return int(bool(found.wrong) or found.longest > MOST_SECONDS or found.megabytes > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
