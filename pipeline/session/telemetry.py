"""How long the parts of a step take on the device, without waiting for it."""

import time
from collections import deque
from typing import Final

import torch

from pipeline.devices import mark

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
