"""Packages of Vitrail in whose place Python finds others: their names are common ones.

Imports nothing of Vitrail, which may not be there to import.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("shards", "pipeline", "recipes")  # beside this one


def shadowed() -> Iterator[str]:
    """Yield a sentence for each package of ours that another file or folder stands in for."""
    for name in PACKAGES:
        spec = find_spec(name)
        file = Path(spec.origin).resolve() if spec and spec.origin else None
        if file is None:
            yield f"the package `{name}` of Vitrail is missing beside {ROOT / 'launch'}; install it again."
        elif file.parent != ROOT / name:
            yield (
                f"{file} stands in for `{name}` of Vitrail, which is {ROOT / name}: Python finds it first. Rename it, "
                f"or start where it is not on the path (`vitrail` looks in PYTHONPATH, `python -m` in the folder too)."
            )
