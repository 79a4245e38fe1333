"""What happens beside the arithmetic of a step: telemetry, logging, checkpoints, stopping, and when to evaluate.

All processes decide alike: what one of them knows alone (a signal, its clock, an unusable sample) travels with the
losses in one small all-reduce a step. Its result is read one step later, when the device has long finished it, so
that nothing waits; it is read at once where a step is logged, evaluated or saved. Weights that a spike has touched
are therefore never saved.
"""

import os
import select
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn

import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.checkpoint import Writer
from pipeline.data.batch import Batch
from pipeline.data.loader import STOP_SIGNALS
from pipeline.devices import Sent, peak_memory, to_host
from pipeline.errors import TrainingError
from pipeline.model.finetune import rate_scales
from pipeline.session.best import Best
from pipeline.session.evaluate import Score
from pipeline.session.evaluator import Evaluator
from pipeline.session.log import Log
from pipeline.session.profiler import Profiler
from pipeline.session.quarantine import Quarantine
from pipeline.session.spike import Span, SpikeFound, Watch
from pipeline.session.tally import Tally
from pipeline.session.telemetry import Laps, Supply
from pipeline.train import Run

PICTURES: Final = 16  # images of the augmented batch that are shown
FORWARDED: Final = 2.0  # seconds in which a launcher may pass on a Ctrl-C that the terminal has sent already


class Report(NamedTuple):
    """What all processes know of a finished step."""

    step: int  # counted from 0
    losses: list[float]  # [K], mean over each virtual rank's images
    agreement: float  # share of the images of which student and teacher say the same
    norm: float  # of the gradient


class StopRequest:
    """Whether this process was asked to stop by one of STOP_SIGNALS, while it listens; one that `speaks` answers.

    Python's handlers wait until the main thread comes back from what it waits for; where another process or a disk is
    gone, that is never. So a thread hears the signals as well, and ends the process at a second SIGINT, SIGTERM or
    SIGHUP. SIGUSR1 only asks, however often: clusters repeat it.
    """

    def __init__(self, *, speaks: bool = False) -> None:
        self.asked = False
        self.answer = "finishing what is being prepared and one step, then saving and stopping"  # what a request does
        self._speaks = speaks

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for a request to finish the step, save, and stop; a request holds until the process ends.

        SIGHUP stays ignored where it is, as under nohup; but torch's launcher passes it on all the same, and kills what
        does not end for it.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        Thread(target=self._hear, args=(reading,), daemon=True).start()
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        if handlers[signal.SIGHUP] == signal.SIG_IGN and "TORCHELASTIC_RUN_ID" not in os.environ:
            del handlers[signal.SIGHUP]
        for number in handlers:
            signal.signal(number, self._ask)
        failed = True
        try:
            yield
            failed = False
        finally:
            # the launcher ends a process that lost another at once: it says why first, and a second signal ends it
            if not self.asked and not (failed and torch.distributed.is_initialized()):
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(wakeup)
                os.close(writing)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _hear(self, reading: int) -> None:
        """Read the numbers of signals as they come, and end the process at the second that is a request to end."""
        first = None
        with open(reading, "rb", buffering=0) as signals:
            while heard := signals.read(1):
                if heard[0] not in STOP_SIGNALS or heard[0] == signal.SIGUSR1:
                    continue
                if first is None:
                    first = time.monotonic()
                    self._answer(signal.Signals(heard[0]))
                elif time.monotonic() - first >= FORWARDED:
                    end_at_once(signal.Signals(heard[0]))

    def _answer(self, number: signal.Signals) -> None:
        """Say at once, whatever the run is at, what a request leads to."""
        again = "Ctrl-C" if number == signal.SIGINT else number.name
        if self._speaks:
            say_at_once(f"{again}: {self.answer}. {again} again, after {FORWARDED:.0f} s, ends at once.")


def end_at_once(number: signal.Signals) -> NoReturn:
    """End the process for a signal, whatever it waits for: nothing is saved, and no exit is waited for."""
    say_at_once(
        f"{number.name} again: ended at once, nothing saved. The same command goes on from the newest checkpoint."
    )
    os._exit(128 + number)


def say_at_once(text: str) -> None:
    """Print a line on standard error from beside the main thread, or leave it where nobody takes it."""
    if select.select([], [2], [], 0)[1]:  # a terminal that is halted takes nothing
        with suppress(OSError):  # one that hung up
            os.write(2, f"{chr(10) if os.isatty(2) else ''}{text}\n".encode())  # a terminal has echoed ^C there


class Events:
    """The events of one session of a run.

    `state` is what a checkpoint says beside its tensors, `skipped` what `run.skipped_steps` is in spans, `trained` what
    the checkpoint that the run goes on from says of the views before (`Tally`).
    """

    def __init__(
        self,
        run: Run,
        log: Log,
        evaluator: Evaluator | None,
        writer: Writer,
        state: dict[str, Any],
        *,
        stop: StopRequest | None = None,
        seconds: float = 0.0,
        watch: Watch,
        best: Best,
        skipped: Sequence[Span] = (),
        trained: Mapping[str, Any] | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self.run = run
        self.recipe = run.job.recipe
        self.log = log
        self.evaluator = evaluator
        self.finished = run.first_step  # steps, skipped ones too
        self.scores: dict[str, Score] = {}  # of the last evaluation
        self.tally = Tally(run, trained)
        self.stopping = False
        self._state = state
        self.best = best
        self._watch = watch
        self._skipped = skipped
        self._quarantine = Quarantine(log, run.job.index, run.accelerator)
        self._stop = stop or StopRequest()
        self._tell(run.first_step)
        self._save_asked = False
        self._writer = writer
        self._sent: deque[tuple[int, Sent]] = deque()
        self._report: Report | None = None
        self._started = time.monotonic() - seconds
        self._saved_at = self._mark = time.monotonic()
        self._mark_step, self._mark_wait = run.first_step, 0.0
        self._supply = Supply(run.feed, run.job.hosting)
        self._training_seconds = 0.0
        self._laps = Laps(run.device)
        self._profiler = profiler
        self._rates = rates_by_group(run)

    @property
    def wall_seconds(self) -> float:
        """Seconds that the run took so far, over all its sessions."""
        return time.monotonic() - self._started

    @property
    def images_per_second(self) -> float:
        """Views a second of this session, without evaluation and saving."""
        views = (self._mark_step - self.run.first_step) * self.recipe.batch
        return views / self._training_seconds if self._training_seconds else 0.0

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        """Trace and count the views, note what could not be used, and show the session's first batch, if it has pixels.

        One of rows has none (`pipeline/data/rows.py`).
        """
        self.log.trace(batch, self.run.job.index)
        self.tally.note(batch)
        self._quarantine.note(batch.unusable)
        if (
            images is not None
            and batch.step == self.run.first_step
            and batch.virtual_rank == self.run.job.virtual_ranks[0]
        ):
            self._show(batch, images)

    def lap(self, part: str) -> None:
        """Take note that a part of a step is over."""
        self._laps.lap(part)

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        """Do what is due after a step; return True to stop.  The only place for anything "every N steps"."""
        recipe, done = self.recipe, step + 1
        self._tell(done)
        end = done == self.run.last_step
        self.finished = done
        log_due = end or is_due(done, recipe.log.every_steps)
        eval_due, save_due = (
            end
            or is_due(done, often.every_steps)
            or is_due(done, often.every_epochs * self.run.schedule.steps_per_epoch)
            for often in (recipe.eval, recipe.checkpoint)
        )
        if self._profiler:
            self._profiler.step()
        self._send(step, losses, agreed, norm)
        self._receive(step - 1)
        if log_due or eval_due or save_due or self.stopping or self._save_asked:
            self._receive(step)
        self.log.advance(done, recipe.batch)
        if is_due(done, self.run.schedule.steps_per_epoch):
            self.tally.check(done)
        if log_due and self._report and self._report.step == step:
            self._log(self._report)
        self._laps.lap("other")
        paused = time.monotonic()
        if eval_due and self.evaluator:
            self.evaluate(done)
            # a checkpoint of the best is one to go on from, too
            save_due |= done > self.run.schedule.head_steps and self.best.note(done, self.scores)
        stopping = self.stopping or self.best.at_plateau
        if save_due or stopping or self._save_asked:
            self.save(done, wait=end or stopping)
        self._laps.skip()
        self._mark += time.monotonic() - paused
        if self.best.at_plateau:
            self._say_plateau(done)
        elif self.stopping:
            self.log.record("event", done, self._epoch(done), {"event": "stopped on request"})
        return stopping and done < self.run.schedule.last_step(self.run.first_step, self.run.job.max_steps)

    def _say_plateau(self, done: int) -> None:
        event = f"plateau: nothing better than {self.best} in {self.recipe.eval.patience} evaluations"
        self.log.record("event", done, self._epoch(done), {"event": event})
        self.log.say(f"step {done}  {event}; the run ends here.")

    def _tell(self, done: int) -> None:
        """Have a request to stop answered by what is at work after `done` steps.

        The request travels with the step at work, and is read there where that is logged or saved, else after the next.
        """
        steps = " or ".join(str(step) for step in (done + 1, done + 2) if step <= self.run.last_step)
        self._stop.answer = f"finishing step {steps}, then saving and stopping" if steps else "finishing the last step"

    def after_halving(self, step: int, said: str) -> None:
        """Say and log that a step is done again, with passes of fewer images."""
        self.log.record("event", step, self._epoch(step), {"event": said})
        self.log.say(f"step {step}  {said}; the step is done again.")

    def skip_step(self, step: int) -> bool:
        """Do what is due after a step that is not trained; return True to stop."""
        nothing = torch.zeros((), device=self.run.device)
        return self.after_step(step, nothing.expand(self.recipe.virtual_ranks), nothing, nothing)

    def _send(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> None:
        """Add up over the processes what they know of a step, and have it copied to the host, without waiting."""
        minutes = self.recipe.checkpoint.every_minutes
        save = bool(minutes) and self.log.main and time.monotonic() - self._saved_at > 60 * minutes
        flags = torch.tensor([self._stop.asked, save, self._quarantine.has_news], dtype=torch.float32)
        flags = flags.to(self.run.device, non_blocking=True)
        shares = torch.cat([losses / self.recipe.rank_batch, agreed[None] / self.recipe.batch])
        known = self.run.accelerator.reduce(torch.cat([shares, flags]), "sum")
        self._sent.append((step, to_host(torch.cat([known, norm[None]]))))

    def _receive(self, through: int) -> None:
        """Take in what was sent of the steps up to `through`.

        Raises TrainingError where the run cannot go on, SpikeFound where it can if steps are skipped.
        """
        while self._sent and self._sent[0][0] <= through:
            step, known = self._sent.popleft()
            *losses, agreement, stop, save, news, norm = known.arrived().tolist()
            self.stopping |= stop > 0
            self._save_asked |= save > 0
            if step not in self.run.skipped_steps:
                self._report = Report(step, losses, agreement, norm)
                wrong, guilty = self._watch.judge(losses, norm)
                if wrong:
                    self._refuse(self._report, wrong, guilty)
            if news:
                self._quarantine.share()
            if too_many := self.recipe.data.too_many_bad(len(self._quarantine), len(self.run.job.index)):
                raise TrainingError(
                    f"step {step}: {too_many} They are named in {self.log.folder.quarantine}; mend them, or allow more."
                )

    def _refuse(self, report: Report, wrong: str, guilty: Sequence[int]) -> NoReturn:
        """End the session for a spike, with its samples named."""
        settings = self.recipe.spike
        views = {rank: self.run.job.order.views(report.step, rank) for rank in guilty}
        keys = {rank: [self.run.job.index.called(sample) for sample in dict.fromkeys(of_rank.samples.tolist())]
                for rank, of_rank in views.items()}  # fmt: skip
        event = {
            "event": f"step {report.step}: {wrong}",
            "losses": [str(loss) for loss in report.losses],
            "gradient_norm": str(report.norm),
            "samples": keys,
        }
        skip = settings.policy != "stop" and len(self._skipped) < settings.limit
        if not skip:
            self.log.record("event", report.step, self._epoch(report.step), event)
        if self.run.teacher:
            self.run.teacher.flush()
        self._writer.wait()  # what may be gone back to is there, for all processes
        self.run.accelerator.wait_for_everyone()
        if skip:
            raise SpikeFound(report.step, self._skipped, event)
        shown = "; ".join(f"virtual rank {rank}: {', '.join(names)}" for rank, names in keys.items())
        kept = next(iter(checkpoint.checkpoints(self.log.folder.checkpoints)), "none: none was due yet")
        remedy = (
            "skip its step, --spike.policy skip"
            if settings.policy == "stop"
            else f"{len(self._skipped)} spikes were skipped before; allow more, --spike.limit"
        )
        raise TrainingError(
            f"step {report.step}: {wrong} (losses {report.losses}, gradient norm {report.norm}). "
            f"Samples: {shown}. The last good checkpoint is {kept}. "
            f"Usual remedies: a lower --optim.lr, --optim.clip 1.0, --precision fp32; or {remedy}."
        )

    def _epoch(self, step: int) -> float:
        return step / self.run.schedule.steps_per_epoch

    def _log(self, report: Report) -> None:
        now, done = time.monotonic(), report.step + 1
        seconds = max(now - self._mark, 1e-9)
        self._training_seconds += seconds
        values: dict[str, Any] = {
            "loss": sum(report.losses) / len(report.losses),
            "lr": self.run.schedule.lr(report.step),
            "images_per_second": (done - self._mark_step) * self.recipe.batch / seconds,
            "data_wait": (self.run.feed.seconds_waited - self._mark_wait) / seconds,
            "grad_norm": report.norm,
            "unusable": len(self._quarantine),
            "memory_gib": peak_memory(self.run.device) / 2**30,
            "times": {part: spent / (done - self._mark_step) for part, spent in self._laps.take().items()},
        }
        if self._rates:
            values["lr_by_group"] = {group: scale * values["lr"] for group, scale in self._rates.items()}
        if self.run.teacher:
            values["agreement"] = report.agreement
        told = self._supply.tell((done - self._mark_step) * self.run.micro_batch.images, seconds)
        self._mark, self._mark_step, self._mark_wait = now, done, self.run.feed.seconds_waited
        self.log.record("train", done, self._epoch(done), values)
        self.log.say(
            f"step {done}/{self.run.schedule.total_steps}  epoch {self._epoch(done):.2f}  loss {values['loss']:.4f}  "
            f"lr {values['lr']:.2e}  grad norm {report.norm:.2f}  {values['images_per_second']:.1f} images/s  "
            f"data wait {values['data_wait']:.1%}" + (f"  agreement {report.agreement:.1%}" if self.run.teacher else "")
        )
        for sentence in told:
            self.log.say(sentence)

    def evaluate(self, step: int, *, record: bool = True) -> None:
        """Evaluate the weights and their averages, and keep the scores."""
        assert self.evaluator
        self.scores = self.evaluator.evaluate(step, record=record)

    def _show(self, batch: Batch, images: Tensor) -> None:
        """Show a batch as the model sees it, with its labels: those of both images where two are mixed."""
        if not (self.log.shows and self.run.job.dataset):
            return
        mean, std = (torch.tensor(of).view(3, 1, 1) for of in (self.recipe.model.mean, self.recipe.model.std))
        shown = ((images[:PICTURES].float().cpu() * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        names = [self.run.job.dataset.classes[label] for label in batch.labels.tolist()]
        records = batch.records.host[: len(shown)]
        captions = [
            f"{names[own]} {lam:.0%}\n{names[other]} {1 - lam:.0%}" if lam < 1 else names[own]
            for own, (lam, other) in enumerate(zip(records["lam"].tolist(), records["partner"].tolist(), strict=True))
        ]
        self.log.pictures("train/augmented", batch.step + 1, shown, captions)

    def save(self, step: int, *, wait: bool) -> None:
        """Have a checkpoint written: by one process, beside the next steps, or before anything goes on.

        Training stops for the copy of the tensors to the host alone. A teacher's outputs are stored before. What is
        saved was trained on the order's own views, or this raises as `Tally.check`.
        """
        self.tally.check(step)
        if self.run.teacher:
            self.run.teacher.flush()
        self._writer.wait()  # so that there is one copy at a time
        weights = self.run.weights
        tensors = checkpoint.on_host(weights.tensors(), weights.groups, keep=self.log.main)
        if self.log.main:
            state = {
                **self._state,
                "wall_seconds": self.wall_seconds,
                "losses": self._watch.losses,
                "skipped_steps": self._skipped,
                "trained": self.tally.state,
                "best": self.best.record,
            }
            saving = self.recipe.checkpoint
            spare = saving.every_steps if self.recipe.spike.policy == "rollback" else 0
            best = self.best.record["step"] if self.best.record else None
            self._writer.save(self.log.folder.checkpoints, step, state, tensors, saving.keep, spare, best)
        if wait:
            self._writer.wait()
            self.run.accelerator.wait_for_everyone()
        self._saved_at, self._save_asked = time.monotonic(), False


def rates_by_group(run: Run) -> dict[str, float]:
    """Return the shares of the rate that groups of parameters have, by the first and the last layer of each.

    Nothing where all have the same.
    """
    scales = rate_scales(run.weights.net, run.job.recipe.finetune)
    layers: dict[float, list[str]] = {}
    for name, scale in scales.items():
        parts = name.split(".")
        layers.setdefault(scale, []).append(".".join(parts[:2]) if parts[0] == "blocks" else parts[0])
    if len(layers) < 2:
        return {}
    return {"_to_".join(dict.fromkeys((of[0], of[-1]))): scale for scale, of in layers.items()}


def is_due(done: int, every: int) -> bool:
    """Return whether something that happens every so many steps happens now; 0 is never."""
    return every > 0 and done % every == 0
