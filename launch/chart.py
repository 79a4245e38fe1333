"""Line charts as numbers for inline SVG: `launch/report.html.j2` draws them, and its style sheet colours them."""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH: Final = 360  # of the SVG's own units, which are about a pixel on a phone
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 10, 190  # of the plane
DRAWN: Final = 400  # points of a line, at most: more than a screen shows
DOTTED: Final = 40  # points of a line that are marked, at most
TICKS: Final = 5

Point = tuple[float, float]


class Series(NamedTuple):
    """Points (x, y) under a name; `run` gives the colour, and lines of weights that are not averaged are dashed."""

    name: str
    run: int
    points: Sequence[Point]
    dashed: bool = False


class Tick(NamedTuple):
    """A number at an axis, and where it stands."""

    at: float
    label: str


class Line(NamedTuple):
    """A series, drawn: `path` as SVG's `points`, and the marks (x, y, words)."""

    name: str
    run: int
    dashed: bool
    path: str
    marks: list[tuple[float, float, str]]


class Chart(NamedTuple):
    """A chart; what it says in words is its title and its lines' names."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def chart(title: str, series: Iterable[Series]) -> Chart | None:
    """Return a chart over epochs of what is finite, None where nothing is."""
    finite = [
        Series(
            one.name, one.run, thinned([point for point in one.points if all(map(math.isfinite, point))]), one.dashed
        )
        for one in series
    ]
    points = [point for one in finite for point in one.points]
    if not points:
        return None
    x_axis = Axis([x for x, _ in points], LEFT, RIGHT)
    y_axis = Axis([y for _, y in points], BOTTOM, TOP)
    lines = []
    for one in finite:
        drawn = [(x_axis.place(x), y_axis.place(y)) for x, y in one.points]
        marks = [(at_x, at_y, f"{one.name}, epoch {x:g}: {y:.5g}")
                 for (at_x, at_y), (x, y) in zip(drawn, one.points, strict=True)]  # fmt: skip
        path = " ".join(f"{x},{y}" for x, y in drawn)
        lines.append(Line(one.name, one.run, one.dashed, path, marks if len(marks) <= DOTTED else []))
    return Chart(title, [line for line in lines if line.path], x_axis.ticks, y_axis.ticks)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return every so many of the points, and the last."""
    every = -(-len(points) // DRAWN) or 1
    return [point for number, point in enumerate(points) if number % every == 0 or number == len(points) - 1]


class Axis:
    """Where numbers stand between two ends, with round numbers as its ticks."""

    def __init__(self, numbers: Sequence[float], first: float, last: float) -> None:
        ticks = list(map(float, MaxNLocator(TICKS, steps=(1, 2, 2.5, 5, 10)).tick_values(min(numbers), max(numbers))))
        self._low, self._high = ticks[0], ticks[-1]
        self._first, self._last = first, last
        self.ticks = [Tick(self.place(tick), f"{tick:.6g}") for tick in ticks]

    def place(self, number: float) -> float:
        """Return where a number stands."""
        share = (number - self._low) / (self._high - self._low or 1)
        return round(self._first + share * (self._last - self._first), 1)
