"""Encoded bytes to pixels, bounded: only image formats of the index, no image larger than a limit."""

import io
import warnings
from typing import Final

from PIL import Image

from shards.errors import SampleError

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_PIXELS: Final = 100_000_000  # the largest image of ImageNet-1k has 29 million; a bomb has billions


def decode(content: bytes, name: str) -> Image.Image:
    """Return the image as RGB; `name` is for the message.  Raises SampleError for what is no such image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which does not matter for pixels
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(f"sample {name!r}: {image.width}x{image.height} pixels, more than {MAX_PIXELS}.")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"sample {name!r}: cannot be decoded ({error}).") from error
