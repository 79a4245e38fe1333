"""The drill: a minute of the user's own run, hit by what clusters do to runs, and compared with an unbroken one.

One run is broken off again and again, by another fault each time, and started again by the same command. At its end
its losses and its weights must be those of a run that nothing happened to, bit for bit.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from launch.saboteur import BALLAST, EVERY, drilled
from pipeline import checkpoint
from pipeline.batch import order_of
from pipeline.config import Recipe
from pipeline.models import on_paper, parameter_count
from pipeline.rehearsal import lacks_weights, made_up
from pipeline.request import BYTES_A_PARAMETER, Request
from pipeline.teacher import write_random_weights
from shards.dataset import Dataset
from shards.errors import TrainingError
from shards.files import write_json

CONFIGS: Final = Path(__file__).parent / "configs"
STEPS: Final = 3  # of a session before its fault


@dataclass(frozen=True)
class Drill:
    """Where a drill happens."""

    recipe: str  # name or file
    small: Recipe  # as its processes train it
    arguments: list[str]  # the user's
    data: Path  # links to the shards
    dataset: Dataset
    folder: Path  # of the run that is broken
    config: str
    processes: int
    patience: float | None = None  # seconds for a session

    @property
    def newest(self) -> Path:
        """The newest checkpoint."""
        return checkpoint.checkpoints(self.folder / "checkpoints")[0]

    @property
    def saved(self) -> int:
        """Finished steps of the newest checkpoint."""
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        return checkpoint.step_of(found[0]) if found else 0


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    what: str
    says: str  # what the run must say, a regular expression
    armed: str = "none"  # in its processes: `launch/saboteur.py`
    around: Callable[[Drill], Any] | None = None  # a context for the session, of what is broken beside them


@dataclass(frozen=True)
class Outcome:
    """What a fault did to a run; `well` is None where it could not be tried."""

    what: str
    well: bool | None
    says: str


@contextmanager
def torn_checkpoint(drill: Drill) -> Iterator[None]:
    """Cut the newest checkpoint's weights in the middle, as a disk does that was not asked to sync."""
    path = drill.newest / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    yield


@contextmanager
def full_disk(drill: Drill) -> Iterator[None]:
    """Make room again, afterwards, on the run's disk, which is a small one of its own."""
    yield
    (drill.folder / BALLAST).unlink(missing_ok=True)


@contextmanager
def vanished_shard(drill: Drill) -> Iterator[None]:
    """Take away the shard that the next step begins with."""
    index = drill.dataset.splits["train"]
    sample = int(order_of(drill.small, index).views(drill.saved, 0).samples[0])
    link = drill.data / "train" / index.shards[index.shard_of(sample)].name
    kept = link.rename(link.with_suffix(".away"))
    yield
    kept.rename(link)


STOPPED: Final = "Stopped on request; a checkpoint is saved"
FAULTS: Final = (
    Fault("SIGTERM to one process, in a step", STOPPED, "stop"),
    Fault("SIGUSR1, twice, in a save", STOPPED, "stop-twice-in-a-save"),
    Fault("SIGKILL of one process, in a step", "", "kill"),
    Fault("SIGKILL in a save", "", "kill-in-a-save"),
    Fault("a torn checkpoint", "torn or altered.*Taking the checkpoint before it", "stop", torn_checkpoint),
    Fault("a full disk", "cannot be written .*No space left on device", "fill-the-disk", full_disk),
    Fault("a vanished shard", r"\.tar: No such file or directory", "none", vanished_shard),
)


def drill(
    request: Request, dataset: Dataset | None, recipe: str, arguments: list[str], config: str, processes: int
) -> int:
    """Drill a request, print what survived, and return 1 if anything did not; data is made up where there is none."""
    small = drilled(request.recipe, processes)
    with tempfile.TemporaryDirectory(prefix="vitrail-drill-") as scratch:
        folder = Path(scratch)
        (folder / "broken").mkdir()
        dataset = dataset or made_up(small, folder / "made-up")
        link_shards(dataset, folder / "data")
        if lacks_weights(small.distill):
            write_random_weights(small, folder / "teacher.safetensors")
            arguments = [*arguments, "--distill.checkpoint", str(folder / "teacher.safetensors")]
        needed = BYTES_A_PARAMETER * parameter_count(on_paper(small)) * (small.checkpoint.keep + 2) + 2**26
        with small_disk(folder / "broken", needed) as small_one:
            place = Drill(recipe, small, arguments, folder / "data", dataset, folder / "broken", config, processes)
            unbroken = replace(place, folder=folder / "unbroken")
            faults = [fault for fault in FAULTS if small_one or fault.around is not full_disk]
            last_step = (len(faults) + 1) * (STEPS + EVERY)  # more than all sessions take
            print(f"{small.name}: {last_step} steps of {small.batch} images on {processes} process(es), unbroken ...")
            started = time.monotonic()
            said = session(unbroken, "none", 0, last_step)
            place = replace(place, patience=3 * (time.monotonic() - started) + 60)
            if not (unbroken.folder / "summary.json").exists():
                raise TrainingError(f"the run does not even end where nothing happens to it:\n{said}")
            outcomes = []
            for fault in faults:
                outcomes.append(meet(place, unbroken, fault, last_step))
                print(f"  {fault.what}: {outcomes[-1].says}", flush=True)
            if not small_one:
                outcomes.append(Outcome("a full disk", None, "not tried: a small disk to fill (tmpfs) needs root"))
            session(place, "none", 0, last_step)
            outcomes.append(compare(place, unbroken))
    show(f"Drill of {small.name}: {config}, {processes} process(es)", outcomes)
    return 1 if any(outcome.well is False for outcome in outcomes) else 0


def meet(place: Drill, unbroken: Drill, fault: Fault, last_step: int) -> Outcome:
    """Go on with the run up to a fault, and say what it did."""
    started = place.saved
    if fault.around and not started:
        return Outcome(fault.what, False, "there is no checkpoint to begin with")
    with fault.around(place) if fault.around else nullcontext():
        said = session(place, fault.armed, started + STEPS, last_step)
    reached = max((line["step"] for line in train_lines(place.folder)), default=0)
    try:
        whole = checkpoint.load_newest(place.folder / "checkpoints", lambda _: None)
    except checkpoint.CheckpointError as error:
        return Outcome(fault.what, False, f"no checkpoint is whole: {error}")
    kept = whole.step if whole else 0
    told = re.search(fault.says, said)
    if (place.folder / "summary.json").exists():
        return Outcome(fault.what, False, "the run ended as if nothing had happened")
    if told is None:
        return Outcome(fault.what, False, f"the run did not say {fault.says!r}: {said.strip()[-400:]}")
    if train_lines(place.folder) != train_lines(unbroken.folder)[:reached]:
        return Outcome(fault.what, False, f"the losses up to step {reached} are not those of the unbroken run")
    return Outcome(fault.what, True, f"steps {started} to {reached}; {reached - kept} to be trained again")


def compare(place: Drill, unbroken: Drill) -> Outcome:
    """Compare the ends of both runs."""
    what = f"the same command, up to step {train_lines(unbroken.folder)[-1]['step']}"
    if not (place.folder / "summary.json").exists():
        return Outcome(what, False, "the run does not end")
    hashes = [json.loads((run.folder / "summary.json").read_text())["weights_sha256"] for run in (place, unbroken)]
    if hashes[0] != hashes[1] or train_lines(place.folder) != train_lines(unbroken.folder):
        return Outcome(what, False, f"weights {hashes[0][:16]}, unbroken {hashes[1][:16]}")
    return Outcome(what, True, f"losses and weights as unbroken, bit for bit ({hashes[0][:16]})")


def train_lines(folder: Path) -> list[dict[str, Any]]:
    """Return what a run logged of its steps, without what the clock decides."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines if line["kind"] == "train"]


def session(place: Drill, fault: str, step: int, last_step: int) -> str:
    """Start the run's processes, wait for their end, and return what they said."""
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    launch += [
        str(CONFIGS / f"{place.config}.yaml"),
        "--num_processes",
        str(place.processes),
        "--main_process_port",
        "0",
    ]
    run = ["-m", "launch.saboteur", fault, str(step), place.recipe, *place.arguments]
    run += ["--data", str(place.data), "--output", str(place.folder), "--max-steps", str(last_step)]
    # a session of its own, so that all its processes can be ended
    with subprocess.Popen(  # noqa: S603
        [*launch, *run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            return process.communicate(timeout=place.patience)[0]
        except subprocess.TimeoutExpired:
            return f"It did not end within {place.patience:.0f} s."
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def link_shards(dataset: Dataset, folder: Path) -> None:
    """Make a data set of links to another's training shards."""
    (folder / "train").mkdir(parents=True)
    for path in dataset.splits["train"].folder.iterdir():
        (folder / "train" / path.name).symlink_to(path.resolve())
    head = json.loads((dataset.folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", {**head, "splits": {"train": head["splits"]["train"]}})


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a disk of so many bytes in memory, where this user may; give whether."""
    mount, umount = (shutil.which(name) for name in ("mount", "umount"))
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)] if mount and umount else ["false"]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    try:
        yield mounted
    finally:
        if mounted and umount:
            subprocess.run([umount, "--lazy", str(folder)], check=True)  # noqa: S603  a process may still be leaving


def show(title: str, outcomes: list[Outcome]) -> None:
    """Print outcomes as a table."""
    table = Table(title=title, show_header=False)
    marks = {True: "[green]survived[/]", False: "[red]NOT SURVIVED[/]", None: "-"}
    for outcome in outcomes:
        table.add_row(outcome.what, marks[outcome.well], outcome.says)
    Console().print(table)
