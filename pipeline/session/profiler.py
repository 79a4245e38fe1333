"""A trace of some steps of the main process by torch's profiler, in `profile/` of a run's folder; it changes no number.

The trace opens in https://ui.perfetto.dev and in Chrome's about:tracing. Beside it and in TensorBoard stands the table
of the operations that took most.
"""

from types import TracebackType
from typing import Final, Self

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from pipeline.session.log import Log

BEFORE: Final = 3  # steps of a session that are not traced: the first ones warm up
ROWS: Final = 20  # of the table


class Profiler:
    """Traces `steps` steps of a session that begins after `first_step`, used as a context."""

    def __init__(self, log: Log, steps: int, first_step: int) -> None:
        self._log, self._steps, self._first = log, steps, first_step + BEFORE
        self._activities = supported_activities()
        self._profile = profile(
            activities=self._activities,
            schedule=schedule(wait=BEFORE - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._keep,
        )

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._profile.stop()

    def step(self) -> None:
        """Take note that a step is over."""
        self._profile.step()

    def _keep(self, traced: profile) -> None:
        """Write the trace, its table, and say where."""
        folder = self._log.folder.profile
        folder.mkdir(exist_ok=True)
        path = folder / f"steps-{self._first:08d}.json.gz"
        traced.export_chrome_trace(str(path))
        device = "device" if self._activities - {ProfilerActivity.CPU} else "cpu"
        table = traced.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
        path.with_name(f"steps-{self._first:08d}.txt").write_text(table)
        self._log.text("train/profile", self._first + 1, table)
        self._log.say(f"profile   {path}: of {self._steps} steps; open it in https://ui.perfetto.dev")
