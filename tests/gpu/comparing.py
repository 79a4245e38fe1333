"""How near two runs came to each other."""

from collections.abc import Callable
from pathlib import Path

from tests.running import metrics

Property = Callable[[str, object], None]  # pytest's record_property: a figure for the page


def losses(folder: Path) -> list[float]:
    """Return the loss of each step of a run."""
    return [line["loss"] for line in metrics(folder, "train")]


def apart(one: list[float], other: list[float]) -> float:
    """Return the largest relative difference of two runs' losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))
