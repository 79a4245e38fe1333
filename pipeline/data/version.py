"""The version of views: what a stored teacher output and a checkpoint are bound to beside the recipe's fields.

`VIEWS` is raised by hand when the bytes of a view change, or the numbers that go with it: order, augmentation, erasing,
mixing, stochastic depth, the initial weights. `tests/pipeline/data/test_version.py` holds goldens of each and fails
when one moves and `VIEWS` does not. The libraries beside it are those whose pixels (simplejpeg, Pillow, torch, OpenCV),
draws (numpy) or tables (timm) enter. torch's builds for devices make the same pixels, and its version is named without.
"""

from functools import cache
from importlib.metadata import version
from typing import Final

import torch

VIEWS: Final = 4
SAME_PIXELS: Final = ("AVX2", "AVX512")  # as torch names what a processor can
LIBRARIES: Final = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "timm", "torch")


@cache
def views_version() -> str:
    """Return the version of views that this installation makes, for instance `1 (numpy 2.4.6, ...)`."""
    versions = (f"{library} {version(library).partition('+')[0]}" for library in LIBRARIES)
    return f"{VIEWS} ({', '.join(versions)})"


def processor_note() -> str:
    """Return what is to be said of this processor: empty for one that makes the same pixels as those we tested on.

    OpenCV filters and turns images with AVX2 (AVX-512 gives the same bytes); without it some values are rounded
    otherwise. Both libraries look at the same processor, and torch can be asked.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in SAME_PIXELS:
        return ""
    return (
        f"computes without AVX2 ({capability}): some pixels of views differ by a grey level from those that "
        f"processors with AVX2 make. Runs repeat exactly on processors of one kind."
    )
