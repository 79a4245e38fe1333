"""The time of a run's steps, without what happens beside them."""

import time

from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.train import Run, train


class Stopwatch:
    """The events of so many steps: none but the end."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        pass

    def after_halving(self, step: int, said: str) -> None:
        pass

    def lap(self, part: str) -> None:
        pass

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        losses.sum().item()  # wait for the device
        self.left -= 1
        return not self.left


def seconds_of(run: Run, steps: int) -> float:
    """Return the seconds that a run's next steps take; it goes on behind them."""
    started = time.perf_counter()
    train(run, Stopwatch(steps))
    run.first_step += steps
    return time.perf_counter() - started
