"""How long the parts of a step take on the device, without waiting for it, and whether the loader keeps up."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import torch

from pipeline.data.loader import Feed
from pipeline.devices import mark
from pipeline.hosting import Hosting

WAITING: Final = 0.1  # share of the time that is spent waiting for data of which a person should know
REMEDY: Final = (
    "What helps: more cores a process (under SLURM --cpus-per-process), more --data.workers up to one a core, smaller "
    "photographs. `vitrail bench loader` measures them."
)
PARTS: Final = ("wait", "input", "forward", "backward", "update", "other")  # for the loader; copy, mix and teach; ...


class Laps:
    """The seconds between marks, by the part of the step that each mark ends.

    On an accelerator a mark is an event in its queue, looked at when the device has passed it: what the host waits for
    meanwhile costs a part nothing. On the CPU it is the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._marks: deque[tuple[str, torch.Event]] = deque()  # "" begins anew
        self._last = time.perf_counter()
        self.skip()

    def lap(self, part: str) -> None:
        """End a part."""
        if event := mark(self._device, timed=True):
            self._marks.append((part, event))
            return
        now = time.perf_counter()
        if part:
            self._seconds[part] += now - self._last
        self._last = now

    def skip(self) -> None:
        """Count nothing of what was done since the last mark."""
        self.lap("")

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since this was asked last, as far as the device has come."""
        while len(self._marks) > 1 and self._marks[1][1].query():
            before, (part, event) = self._marks.popleft()[1], self._marks[0]
            if part:
                self._seconds[part] += before.elapsed_time(event) / 1000
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken


class Supply:
    """Whether the loader can feed the steps: said once, as is what to do where a step waits for data.

    What is prepared before a session's first line of the log counts for nothing: workers start, and a model compiles.
    """

    def __init__(self, feed: Feed, hosting: Hosting) -> None:
        self._feed, self._hosting = feed, hosting
        self._mark: tuple[float, float] | None = None  # seconds waited and prepared, up to the line before
        self._compared = self._remedied = False

    def tell(self, views: int, seconds: float) -> Iterator[str]:
        """Yield what there is to say of this process's last views, and the seconds in which they were trained on."""
        before, self._mark = self._mark, (self._feed.seconds_waited, self._feed.seconds_prepared)
        if before is None:
            return
        waited, prepared = self._mark[0] - before[0], self._mark[1] - before[1]
        workers, cores = self._hosting.workers, self._hosting.cores
        if workers and prepared and not self._compared:
            self._compared = True
            given, asked = workers * views / prepared, views / max(seconds - waited, 1e-9)
            yield (
                f"loader    {workers} worker(s) on {cores} core(s) give about {given:,.0f} views/s, the steps ask for "
                f"{asked:,.0f}{'' if given >= asked else ': too few'}"
            )
        if waited > WAITING * seconds and not self._remedied:
            self._remedied = True
            yield f"{waited / seconds:.0%} of the time goes by in waiting for data. {REMEDY}"
