"""The folder of a run: what lies in it and by which name, its lock, and the record of the run's sessions."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shards.errors import BadRequest
from shards.files import atomic_write, read_json_lines


class RunFolder:
    """The paths of a run's files; nothing is made or opened by naming them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.json"  # the resolved recipe, versions, git commit, fingerprints: of its beginning
        self.sessions = path / "sessions.jsonl"  # one line a session
        self.metrics = path / "metrics.jsonl"  # one line a logged step, evaluation or event
        self.summary = path / "summary.json"  # the last file of a run
        self.checkpoints = path / "checkpoints"
        self.weights = path / "model.safetensors"  # with the next two, what timm loads
        self.ema_weights = path / "model_ema.safetensors"
        self.timm_config = path / "config.json"
        self.tensorboard = path / "tensorboard"
        self.quarantine = path / "quarantine.jsonl"  # samples that could not be used
        self.traces = path / "trace"
        self.picture = path / "learnt.png"
        self.rehearsal = path / "rehearsal.json"  # what a dry run measured

    def __str__(self) -> str:
        return str(self.path)

    @property
    def existing(self) -> Path:
        """The folder, or the nearest above it that there is."""
        return next(path for path in (self.path, *self.path.absolute().parents) if path.exists())

    def trace(self, process: int) -> Path:
        """Return where a process writes which views its virtual ranks see."""
        return self.traces / f"rank-{process}.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it; a kill opens it again.

        Raises BadRequest if another process is in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise BadRequest.of(
                "output", f"--output {self}: another process is working on this run; stop it, or wait."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def finished_steps(self) -> int | None:
        """Return the steps that the summary says are done, None where there is none."""
        return json.loads(self.summary.read_text())["steps"] if self.summary.exists() else None

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind of metrics.jsonl, without one that a kill left half written."""
        return [line for line in read_json_lines(self.metrics) if line["kind"] == kind]

    def quarantined(self, split: str) -> set[str]:
        """Return the keys of a split's samples that earlier sessions of the run could not use."""
        return {line["key"] for line in read_json_lines(self.quarantine) if line["split"] == split}

    def rewind(self, step: int) -> None:
        """Cut off what metrics and traces hold beyond `step` finished steps, and what a kill left half written."""
        _keep_lines(self.metrics, lambda line: line["step"] <= step)
        _keep_lines(self.quarantine, lambda _: True)
        for path in self.traces.glob("rank-*.jsonl"):
            _keep_lines(path, lambda line: line["step"] < step)

    def begin_session(self, record: dict[str, Any]) -> None:
        """Append a session's record; one before it that has no end was killed."""
        sessions = list(read_json_lines(self.sessions))
        for session in sessions:
            if session["ended"] is None:
                # as far as is known: by the log, and by the checkpoint that the next one goes on from
                logged = max((line["step"] for line in self.logged("train")), default=0)
                session |= {"to_step": max(logged, session["from_step"], record["from_step"]), "ended": "killed"}
        _write_lines(self.sessions, [*sessions, {**record, "to_step": None, "ended": None}])

    def end_session(self, to_step: int, ended: str) -> None:
        """Say of the last session how far it came and how it ended."""
        *before, last = read_json_lines(self.sessions)
        _write_lines(self.sessions, [*before, {**last, "to_step": to_step, "ended": ended}])


def _keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    if path.exists():
        _write_lines(path, [line for line in read_json_lines(path) if wanted(line)])


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
