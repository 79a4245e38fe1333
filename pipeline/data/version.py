"""The version of views: what a stored teacher output and a checkpoint are bound to beside the recipe's fields.

`VIEWS` is raised by hand when the bytes of a view change, or the numbers that go with it: order, augmentation, erasing,
mixing, stochastic depth, the initial weights. `tests/pipeline/data/test_version.py` holds goldens of each and fails
when one moves and `VIEWS` does not. The libraries beside it are those whose pixels (Pillow), draws (numpy) or tables
(timm) enter. torch is not among them: what it computes of a view differs by float rounding alone, as between devices,
and the weights that it draws at the start of a run lie in the run's checkpoints.
"""

from functools import cache
from importlib.metadata import version
from typing import Final

VIEWS: Final = 3
LIBRARIES: Final = ("numpy", "pillow", "timm")


@cache
def views_version() -> str:
    """Return the version of views that this installation makes, for instance `1 (numpy 2.4.6, ...)`."""
    return f"{VIEWS} ({', '.join(f'{library} {version(library)}' for library in LIBRARIES)})"
