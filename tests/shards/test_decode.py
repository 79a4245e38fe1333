"""Encoded bytes to pixels: which formats, what their colours become, what is bounded, and what is no image."""

import io
import pickle
import re
import resource
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import PREFIXES

from shards.decode import (
    FORMATS,
    MAX_BYTES,
    MAX_ELONGATION,
    MAX_PIXELS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_SLOW_PIXELS,
    _usual_jpeg,
    decode,
    kind_of,
)
from shards.errors import SampleError
from tests.bench.fuzz import damaged, fuzz
from tests.photographs import photographs

PIXELS = np.linspace(0, 255, 12 * 20 * 3).astype(np.uint8).reshape(12, 20, 3)
PHOTO = Image.fromarray(PIXELS)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter


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


def tables(entries: int, size: int) -> bytes:
    """Return a TIFF without pixels whose tables name nearly all of its bytes, again and again."""
    rows = b"".join(struct.pack("<HHLL", number + 1, 7, size - 100, 0) for number in range(entries))
    return (b"II*\0" + struct.pack("<LH", 8, entries) + rows + bytes(size))[:size]


def with_exif(*blocks: bytes, mode: str = "RGB") -> bytes:
    """Return a JPEG that says nothing of its resolution, so that Pillow looks for it in the EXIF of these segments."""
    whole = encoded(PHOTO.convert(mode), "JPEG")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks)
    return whole[:2] + segments + whole[20 if whole[2:4] == b"\xff\xe0" else 2 :]  # without its JFIF segment


def with_scans(count: int) -> bytes:
    """Return a progressive JPEG of so many scans: its last one, again and again."""
    whole = encoded(PHOTO, "JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", whole)]
    last = whole[starts[-1] : -2]
    return whole[:-2] + last * (count - len(starts)) + whole[-2:]


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_comes_back_in_colour(format: str) -> None:
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    image = decode(encoded(PHOTO, format, **options.get(format, {})), "a")
    assert (image.dtype, image.shape) == (np.uint8, (12, 20, 3))
    off = np.abs(image.astype(int) - PIXELS).max()
    assert off <= {"JPEG": 20, "GIF": 60}.get(format, 0)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"),
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("1", "TIFF"), ("1", "PPM"), ("P", "BMP"), ("P", "GIF"),
    ],
)  # fmt: skip
def test_every_kind_of_colour_becomes_rgb(mode: str, format: str) -> None:
    image = decode(encoded(PHOTO.convert(mode), format), "a")
    assert (image.dtype, image.shape) == (np.uint8, (12, 20, 3))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_upper_8(format: str) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(ramp), format), "x-ray")
    assert np.array_equal(pixels, np.repeat((ramp >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_32_bits_has_no_range_that_is_known(kind: type) -> None:
    with pytest.raises(SampleError, match="'depth': TIFF, grey of 32 bits, of which nothing says"):
        decode(encoded(Image.fromarray(np.zeros((4, 4), kind)), "TIFF"), "depth")


def test_what_is_transparent_keeps_the_colour_that_it_has() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(clear, "PNG"), "a")[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    first, second = (Image.new("RGB", (9, 9), colour) for colour in ((200, 0, 0), (0, 200, 0)))
    options = {"lossless": True} if format == "WEBP" else {}
    moving = encoded(first, format, save_all=True, append_images=[second], **options)
    assert decode(moving, "a")[4, 4].tolist() == [200, 0, 0]


def test_a_photograph_of_a_phone_with_a_second_picture_in_it_is_a_jpeg() -> None:
    content = encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
    assert decode(content, "phone").shape == (12, 20, 3)


def test_jpegs_are_not_turned_as_their_exif_says_and_tiffs_are() -> None:
    assert decode(encoded(PHOTO, "JPEG", exif=TURNED), "a").shape == (12, 20, 3)
    assert decode(encoded(PHOTO, "TIFF", exif=TURNED.tobytes()), "a").shape == (20, 12, 3)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" * 3])
def test_exif_that_is_broken_is_no_reason_to_refuse_an_image(block: bytes) -> None:
    assert decode(with_exif(block), "a").shape == (12, 20, 3)


def test_a_format_is_told_by_its_bytes_and_not_by_a_name() -> None:
    assert decode(encoded(PHOTO, "GIF"), "cat.jpg").shape == (12, 20, 3)


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (12_000, 12_000)])
def test_an_image_larger_than_the_limit_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(SampleError) as caught:
        decode(png(width, height), "huge")
    assert str(caught.value) == f"sample 'huge': PNG, of {width}x{height} pixels, more than {MAX_PIXELS:,}."


def test_a_bomb_of_billions_of_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(SampleError, match=r"sample 'bomb': .*(exceeds limit|more than)"):
        decode(png(100_000, 100_000), "bomb")


def test_an_image_of_the_limit_is_not_refused_for_its_size() -> None:
    with pytest.raises(SampleError, match=r"PNG that cannot be decoded \(OSError: image file is truncated"):
        decode(png(10_000, MAX_PIXELS // 10_000), "large")


def test_a_strip_is_refused_that_would_be_scaled_to_gigapixels() -> None:
    assert decode(encoded(Image.new("RGB", (MAX_ELONGATION, 1)), "PNG"), "strip").shape == (1, MAX_ELONGATION, 3)
    with pytest.raises(SampleError, match="of 1x101 pixels, more than 100 times"):
        decode(encoded(Image.new("RGB", (1, MAX_ELONGATION + 1)), "PNG"), "strip")


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (12_000, 12_000, f"of 12000x12000 pixels, more than {MAX_PIXELS:,}"),
        (1, 101, "of 1x101 pixels, more than 100 times"),
    ],
)
def test_a_jpeg_beyond_a_bound_is_refused_before_it_is_decoded(
    width: int, height: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(PHOTO, "JPEG")
    at = whole.index(b"\xff\xc0") + 5  # where its header has height and width
    content = whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(SampleError, match=f"JPEG, {words}"):
        decode(content, "large")


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    assert decode(with_scans(MAX_SCANS), "scans").shape == (12, 20, 3)
    with pytest.raises(SampleError, match=f"JPEG, of more than {MAX_SCANS} scans"):
        decode(with_scans(MAX_SCANS + 1), "scans")
    with pytest.raises(SampleError, match=f"JPEG, of more than {MAX_SEGMENTS:,} segments"):
        decode(b"\xff\xd8" + b"\xff\xfe\0\2" * MAX_SEGMENTS + b"\xff\xda" * (MAX_SCANS + 1), "segments")


@pytest.mark.parametrize("place", ["behind the image", "in a segment"])
def test_what_looks_like_scans_and_is_none_is_not_counted(place: str) -> None:
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c" * (MAX_SCANS + 1)
    whole = encoded(PHOTO, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", len(video) + 2) + video
    content = whole + video if place == "behind the image" else whole[:2] + comment + whole[2:]
    assert decode(content, "moving").shape == (12, 20, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_exif(*[b"Exif\0\0" + tables(60_000, 65_000)] * 8, mode="CMYK"), "bytes of EXIF, more than"),
        (tables(60_000, 4_000_000), "TIFF, whose tables take more than"),
        (b"II\0*" + tables(60_000, 4_000_000)[4:], "TIFF, whose tables take more than"),
    ],
    ids=["EXIF of a JPEG", "TIFF", "TIFF of a wrong order"],
)
def test_tables_that_name_the_same_bytes_again_and_again_take_no_memory(content: bytes, words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SampleError, match=words):
        decode(content, "tables")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "content",
    [
        b"P3\n2000 2000\n255\n" + b"1 2 3 ",
        b"P5\n2000 2000\n1000\n" + bytes(100),
    ],
    ids=["text", "odd depth"],
)
def test_what_pillow_decodes_in_python_has_a_lower_limit(content: bytes) -> None:
    with pytest.raises(SampleError, match=f"slow to decode .* more than {MAX_SLOW_PIXELS:,}"):
        decode(content, "slow")


def test_bytes_have_a_limit_too() -> None:
    with pytest.raises(SampleError, match="more than 67,108,864"):
        decode(encoded(PHOTO, "JPEG") + bytes(MAX_BYTES), "padded")


def test_text_in_an_image_that_unfolds_to_megabytes_is_refused() -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(SampleError, match=r"sample 'text': PNG that cannot be decoded .*too large"):
        decode(png(4, 4, text), "text")


@pytest.mark.parametrize("start", [*PREFIXES, *(b"P%d\n" % number for number in range(1, 7))])
def test_all_that_pillow_takes_for_a_tiff_or_ppm_is_known_as_one(start: bytes) -> None:
    assert kind_of(start) == ("PPM" if start.startswith(b"P") else "TIFF")


def test_a_tiff_of_64_bit_offsets_is_read() -> None:
    assert np.array_equal(decode(encoded(PHOTO, "TIFF", big_tiff=True), "big"), PIXELS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty, not read"),
        (bytes(100), "nothing but zeros"),
        (b"some text", "no image, not read; JPEG, PNG"),
        (pickle.dumps(PIXELS), "no image"),
        (b"\n <!DOCTYPE html><title>404", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS .*git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, not read"),
        (encoded(PHOTO, "AVIF"), "AVIF, not read"),
        (b"%PDF-1.4", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "PNG, a header that is cut off or damaged"),
        (encoded(PHOTO, "JPEG")[:200], "JPEG"),
        (encoded(PHOTO, "PNG")[:-40], "PNG that cannot be decoded"),
        (png(4, 4), "PNG that cannot be decoded"),
        (encoded(PHOTO, "TIFF")[:-200], "TIFF"),
        (b"P6\n20 x", "PPM, a header that is cut off or damaged|PPM that cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0" * 5), "PNG"),  # struct.error, once
        (png(4, 4, chunk(b"pHYs", b"\0")), "PNG"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused_with_its_name_and_with_what_it_is(content: bytes, words: str) -> None:
    with pytest.raises(SampleError, match=rf"^sample 'n0123/a': {words}") as caught:
        decode(content, "n0123/a")
    assert "object at 0x" not in str(caught.value)


def test_a_machine_without_memory_is_not_the_samples_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("shards.decode._to_rgb", no_memory)
    with pytest.raises(MemoryError):
        decode(encoded(PHOTO, "PNG"), "a")


def test_a_profile_of_colours_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(decode(encoded(PHOTO, "PNG", icc_profile=profile), "a"), PIXELS)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 20}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_usual_jpeg_has_the_pixels_of_pillow_without_it(
    mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.fromarray(photographs(1)[0]).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(content)) as image:
        pillows = np.asarray(image.convert("RGB"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert np.array_equal(decode(content, "a"), pillows)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
def test_a_damaged_jpeg_has_the_pixels_of_pillow_or_is_pillows_to_judge() -> None:
    equal = refused = 0
    for number in range(3000):
        name, content = damaged(number)
        if not name.startswith(("jpeg", "mpo")) or (pixels := _usual_jpeg(content)) is None:
            continue
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                assert np.array_equal(pixels, image.convert("RGB")), number
                equal += 1
        except (OSError, SyntaxError, ValueError, struct.error):  # of what stands beside the pixels
            refused += 1
    assert equal > 50
    assert refused < 0.1 * equal


@pytest.mark.dist
def test_of_thousands_of_damaged_files_nothing_comes_but_pixels_and_sample_errors() -> None:
    # two hundred thousand: python tests/bench/fuzz.py
    found = fuzz(3000, first=1_000_000, processes=1)
    assert sum(found.kinds.values()) == 3000
    assert not found.wrong
    assert found.longest < 10
