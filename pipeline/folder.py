"""The folder of a run: what lies in it and by which name, its lock, and the record of the run's sessions."""

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict
from uuid import uuid4

from shards.errors import BadRequest, DamagedFile
from shards.files import Lines, read_json, read_json_lines, write_json, write_lines
from shards.locks import Held, locked

DAMAGED: Final = ".damaged"  # after the name of what is set aside
LOG: Final = re.compile(r"\.(log|out|err)$")  # where a shell or SLURM puts what a run says


class Summary(TypedDict):
    """What is read of summary.json again."""

    steps: int
    exported_step: NotRequired[int]
    top1: float | None
    wall_seconds: float
    weights_sha256: str


class Beginning(TypedDict):
    """What is read of recipe.json again."""

    recipe: dict[str, Any]
    fingerprints: NotRequired[dict[str, str | None]]
    versions: NotRequired[dict[str, str]]
    git_commit: NotRequired[str | None]
    data: NotRequired[dict[str, Any]]  # its place, and what dataset.json says


class Rehearsal(TypedDict):
    """rehearsal.json."""

    images_per_second: float  # of one process
    views_per_core: NotRequired[float]  # views/s that a core's loader worker prepares, with nothing beside it
    device: str
    cost_fields: dict[str, Any]


class Tracked(TypedDict):
    """tracked.json."""

    id: str


class MetricsLine(TypedDict):
    """What is read of a line of metrics.jsonl again."""

    kind: str
    step: int
    epoch: float
    loss: NotRequired[float]
    grad_norm: NotRequired[float]
    images_per_second: NotRequired[float]
    data_wait: NotRequired[float]
    split: NotRequired[str]
    weights: NotRequired[str]
    top1: NotRequired[float]
    times: NotRequired[dict[str, float]]  # seconds of a step, by part
    event: NotRequired[str]


class TraceLine(TypedDict):
    """A line of a trace."""

    step: int
    virtual_rank: int
    views: list[tuple[str, int]]  # key and copy


class QuarantineLine(TypedDict):
    """What is read of a line of quarantine.jsonl again."""

    split: str
    shard: str
    key: str
    reason: NotRequired[str]


class SessionLine(TypedDict):
    """What is read of a line of sessions.jsonl again."""

    data: NotRequired[str]
    resume: NotRequired[str | None]  # the checkpoint that the run began from, or went back to
    from_step: int
    to_step: int | None
    ended: str | None
    started: NotRequired[str]
    command: NotRequired[list[str]]
    processes: NotRequired[int]
    engine: NotRequired[str]
    precision: NotRequired[str]
    micro_batch: NotRequired[int]
    machine: NotRequired[dict[str, Any]]
    changed: NotRequired[dict[str, Any]]


class Mistake(TypedDict):
    """A sample that was answered wrongly; label and answer are numbers of classes."""

    key: str
    label: int
    answer: int
    probability: float  # of the answer


class FindingsHead(TypedDict):
    """findings/findings.json: what the last evaluation found (`pipeline/session/findings.py`)."""

    step: int
    split: str
    weights: str  # which were asked
    samples: int
    classes: list[str]
    confusion: list[list[int]]  # label, answer, and how many samples
    mistakes: list[Mistake]  # the most confident ones
    looked_at: list[str]  # keys of the images with a map of attention
    tokens: list[str]  # whose attention


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
        self.ema_weights = self.averaged("ema")
        self.timm_config = path / "config.json"
        self.tensorboard = path / "tensorboard"
        self.quarantine = path / "quarantine.jsonl"  # samples that could not be used
        self.traces = path / "trace"
        self.profile = path / "profile"  # what torch's profiler traced, with --log.profile
        self.picture = path / "learnt.png"
        self.findings = path / "findings"  # what the last evaluation found, and pictures of it
        self.findings_head = self.findings / "findings.json"
        self.rehearsal = path / "rehearsal.json"  # what a dry run measured
        self.tracked = path / "tracked.json"  # by what id trackers of others know the run
        self.micro_batch = path / "micro_batch.json"  # where a pass did not fit: the most images of one, by hosting

    def __str__(self) -> str:
        return str(self.path)

    @property
    def existing(self) -> Path:
        """The folder, or the nearest above it that there is."""
        return existing(self.path)

    def strangers(self) -> list[str]:
        """Return the names of what lies in the folder, where none of it is a run's; a log of its start may be there."""
        if not self.path.is_dir():
            return []
        names = sorted(path.name for path in self.path.iterdir())
        begun = (self.recipe.name, self.sessions.name, self.checkpoints.name)
        if any(name.removesuffix(DAMAGED) in begun for name in names):
            return []
        ours = {self.rehearsal.name, "lost+found"}
        return [name for name in names if name not in ours and not name.startswith(".") and not LOG.search(name)]

    def averaged(self, name: str) -> Path:
        """Return where an average of the weights lies, `ema` or a further one, beside `weights`."""
        return self.path / f"model_{name}.safetensors"

    @property
    def board(self) -> Path:
        """Where TensorBoard's event files lie: in a folder called as the run was when it began."""
        begun = [path for path in self.tensorboard.iterdir() if path.is_dir()] if self.tensorboard.is_dir() else []
        return begun[0] if len(begun) == 1 else self.tensorboard / (self.path.absolute().name or "run")

    @property
    def told(self) -> int:
        """The step up to which a session logged, though the run may have gone back since."""
        return max((line["to_step"] or 0 for line in read_json_lines(self.sessions, SessionLine).good), default=0)

    def tracked_id(self) -> str:
        """Return the id by which trackers of others know the run, no other's anywhere; made when first asked for."""
        if not self.tracked.exists():
            write_json(self.tracked, {"id": uuid4().hex})
        return read_json(self.tracked, Tracked)["id"]

    def trace(self, process: int) -> Path:
        """Return where a process writes which views its virtual ranks see."""
        return self.traces / f"rank-{process}.jsonl"

    def finding(self, kind: str, number: int) -> Path:
        """Return where a picture of the last evaluation lies: of a mistake, an image, or a token's attention to it."""
        return self.findings / f"{kind}-{number:02d}.png"

    @contextmanager
    def lock(self, say: Callable[[str], None]) -> Iterator[None]:
        """Make the folder and keep other processes out of it; a kill opens it again, where the system has locks.

        Raises BadRequest if another process is in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", timeout=0, say=say))
            except Held as held:
                raise BadRequest.of(
                    "output", f"--output {self}: another process is working on this run. {held.remedy}"
                ) from held
            yield

    def ended(self) -> Summary | None:
        """Return the summary, None where there is none that can be read: it is the last file of a run."""
        try:
            return read_json(self.summary, Summary)
        except (FileNotFoundError, DamagedFile):
            return None

    def logged(self, kind: str) -> list[MetricsLine]:
        """Return the lines of a kind of metrics.jsonl."""
        return [line for line in read_json_lines(self.metrics, MetricsLine).good if line["kind"] == kind]

    def quarantined(self, split: str) -> set[tuple[str, str]]:
        """Return shard and key of a split's samples that earlier sessions of the run could not use."""
        lines = read_json_lines(self.quarantine, QuarantineLine).good
        return {(line["shard"], line["key"]) for line in lines if line["split"] == split}

    def release(self, split: str, names: Set[tuple[str, str]]) -> None:
        """Cut samples of a split, by shard and key, off those that could not be used."""
        _keep_lines(
            self.quarantine,
            QuarantineLine,
            lambda line: line["split"] != split or (line["shard"], line["key"]) not in names,
        )

    def mend(self, say: Callable[[str], None]) -> None:
        """Sweep what a kill left, and set aside what is damaged, with a word: no log stops a run.

        Raises OSError for a file that the system does not give: it may be whole, and stays where it is.
        """
        for left in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        files: dict[Path, type[Any]] = {
            self.recipe: Beginning,
            self.summary: Summary,
            self.rehearsal: Rehearsal,
            self.tracked: Tracked,
            self.micro_batch: dict[str, int],
        }
        for path, form in files.items():
            try:
                read_json(path, form)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                say(f"{error} Set aside as {_set_aside(path).name}.")
        logs: dict[Path, type[Any]] = {
            self.metrics: MetricsLine,
            self.quarantine: QuarantineLine,
            self.sessions: SessionLine,
            **dict.fromkeys(self.traces.glob("rank-*.jsonl"), TraceLine),
        }
        for path, form in logs.items():
            try:
                lines: Lines[Any] = read_json_lines(path, form)
            except DamagedFile as error:
                say(f"{error} Set aside as {_set_aside(path).name}.")
                continue
            if lines.damaged:
                aside = path.with_name(f"{path.name}{DAMAGED}")
                with aside.open("ab") as file:
                    file.write(b"".join(line + b"\n" for line in lines.damaged))
                write_lines(path, lines.good)
                say(f"{path}: {len(lines.damaged)} lines cannot be read; set aside in {aside.name}.")

    def leave(self, saved: Iterable[Path]) -> Path:
        """Move checkpoints that the run does not go on from into a folder of their own, which is returned.

        What was logged up to them is copied there: `rewind` cuts it off.
        """
        aside = next(path for number in count(1) if not (path := self.path / f"left-{number}").exists())
        aside.mkdir()
        if self.metrics.exists():
            shutil.copy(self.metrics, aside)
        for path in (*saved, self.summary):
            if path.exists():
                path.rename(aside / path.name)
        return aside

    def rewind(self, step: int) -> None:
        """Cut off what metrics and traces hold beyond `step` finished steps, and what a kill left half written."""
        _keep_lines(self.metrics, MetricsLine, lambda line: line["step"] <= step)
        _keep_lines(self.quarantine, QuarantineLine, lambda _: True)
        for path in self.traces.glob("rank-*.jsonl"):
            _keep_lines(path, TraceLine, lambda line: line["step"] < step)

    def began_from(self, saved: Path) -> bool:
        """Return whether a checkpoint is the last one that a session was told to begin from."""
        try:
            sessions = read_json_lines(self.sessions, SessionLine).good
        except DamagedFile:  # which `mend` sets aside
            return False
        named = [line["resume"] for line in sessions if line.get("resume")]
        return named[-1:] == [str(saved.resolve())]

    def begin_session(self, record: dict[str, Any]) -> None:
        """Append a session's record; one before it that has no end was killed. The summary of an earlier end goes."""
        self.summary.unlink(missing_ok=True)
        sessions = read_json_lines(self.sessions, SessionLine).good
        for session in sessions:
            if session["ended"] is None:
                # as far as is known: by the log, and by the checkpoint that the next one goes on from
                logged = max((line["step"] for line in self.logged("train")), default=0)
                session["to_step"] = max(logged, session["from_step"], record["from_step"])
                session["ended"] = "killed"
        write_lines(self.sessions, [*sessions, {**record, "to_step": None, "ended": None}])

    def end_session(self, to_step: int, ended: str) -> None:
        """Say of the last session how far it came and how it ended.  Raises OSError where its record is gone."""
        sessions = read_json_lines(self.sessions, SessionLine).good
        if not sessions:
            raise gone(self.sessions)
        *before, last = sessions
        write_lines(self.sessions, [*before, {**last, "to_step": to_step, "ended": ended}])


def existing(path: Path) -> Path:
    """Return a path, or the nearest above it that there is."""
    return next(path for path in (path, *path.absolute().parents) if path.exists())


def gone(path: Path) -> OSError:
    """Return what is raised where a file of a run vanished under it."""
    return FileNotFoundError(errno.ENOENT, "gone while the run was writing it", str(path))


def _keep_lines(path: Path, form: type[Any], wanted: Callable[[Any], bool]) -> None:
    if path.exists():
        write_lines(path, [line for line in read_json_lines(path, form).good if wanted(line)])


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}{DAMAGED}")
    path.rename(aside)
    return aside
