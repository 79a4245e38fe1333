"""Pictures as pixels, for TensorBoard: images with captions, and a table as a heat map."""

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import harmless

CELL: Final = 132  # pixels of an image's side
LINE: Final = 13  # pixels of a line of a caption
LETTERS: Final = 22  # of it
LINES: Final = 3
HEATED: Final = 1000  # classes of which a heat map is drawn, at most
HEAT: Final = 640  # pixels of its side, about


@cache
def font() -> Any:
    """Return matplotlib's own font, which has the letters of many languages."""
    import matplotlib  # takes a moment, and a run draws late

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 10)


def captioned(images: NDArray[np.uint8], captions: Sequence[str], columns: int = 4) -> NDArray[np.uint8]:
    """Return images [B, S, S, 3] side by side, each above its caption, as one picture [H, W, 3]."""
    rows = -(-len(images) // columns)
    height = CELL + LINES * LINE + 6
    sheet = Image.new("RGB", (columns * (CELL + 6), max(rows, 1) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = number % columns * (CELL + 6), number // columns * height
        sheet.paste(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        lines = [part for line in harmless(caption).splitlines() for part in textwrap.wrap(line, LETTERS)][:LINES]
        pen.multiline_text((left, top + CELL + 1), "\n".join(lines), fill="black", font=font(), spacing=1)
    return np.asarray(sheet)


def heat_map(counts: Sequence[Sequence[int]], classes: int) -> NDArray[np.uint8] | None:
    """Return the confusion of classes as a picture: rows are labels, columns answers, dark is a large share of its row.

    `counts` are label, answer and how many. None where there are more classes than a picture can show.
    """
    if classes > HEATED:
        return None
    table = np.zeros((classes, classes))
    for label, answer, count in counts:
        table[label, answer] = count
    share = table / table.sum(1, keepdims=True).clip(1)
    light = (255 * (1 - share[..., None] * np.array([0.85, 0.6, 0.2]))).astype(np.uint8)
    zoom = max(1, HEAT // classes)
    return light.repeat(zoom, axis=0).repeat(zoom, axis=1)
