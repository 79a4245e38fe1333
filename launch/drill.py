"""`vitrail drill`: a minute of the user's own run, hit by what clusters do to runs, and compared with an unbroken one.

One run is broken off again and again, by another fault each time, and started again by the same command. At its end
its losses and its weights must be those of a run that nothing happened to, bit for bit.
"""

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

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.saboteur import BALLAST, EVERY, drilled
from launch.verb import RecipeVerb, config_file, engine_named, resolved
from pipeline import checkpoint
from pipeline.errors import CheckpointError, TrainingError
from pipeline.folder import RunFolder, Summary
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, Job
from pipeline.session.rehearsal import made_up
from pipeline.teacher.teacher import lacks_weights, write_random_weights
from shards.dataset import Dataset, write_dataset
from shards.errors import BadRequest, harmless
from shards.files import read_json
from shards.terminal import plain

STEPS: Final = 3  # of a session before its fault


@dataclass(frozen=True, kw_only=True)
class MakeDrill(RecipeVerb):
    """Break a minute of your own run with signals, kills, a torn file, a full disk and a vanished shard.

    Takes the recipe's own fields too: --data, --batch, ...; without --data the images are made up. Says what survived.

    Example: vitrail drill deit_small --data DIR
    """

    config: str = ""  # of launch/configs; empty: cpu, or ddp_8gpu where there is a GPU
    processes: int = 0  # 0: one a GPU; two, where there is none

    def __call__(self, arguments: list[str]) -> int:
        """Print a table; return 1 if something did not survive."""
        request = self.request(arguments)
        config = self.config or ("ddp_8gpu" if torch.accelerator.is_available() else "cpu")
        processes = self.processes or min(torch.accelerator.device_count() or 2, request.recipe.virtual_ranks)
        engine, found = engine_named(config)
        job = resolved(request, REHEARSAL, Hosting(processes=processes, engine=engine), found)
        if job.dataset and job.index.place:
            raise BadRequest.of(
                "data",
                f"--data {job.data}: a drill takes shards away, and does so with those in a folder of Vitrail's alone. "
                f"Leave --data out, and it makes some up.",
            )
        return drill(job, self.recipe, arguments, config)


VERB: Final = MakeDrill


@dataclass(frozen=True)
class Drill:
    """Where a drill happens."""

    job: Job  # as its processes train it: smaller, on a data set of links, into the folder of the run that is broken
    recipe: str  # name or file
    arguments: list[str]  # the user's
    config: str
    patience: float | None = None  # seconds for a session

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return self.job.folder

    @property
    def newest(self) -> Path:
        """The newest checkpoint."""
        return checkpoint.checkpoints(self.folder.checkpoints)[0]

    @property
    def saved(self) -> int:
        """Finished steps of the newest checkpoint."""
        found = checkpoint.checkpoints(self.folder.checkpoints)
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
    """What a fault did to a run; `survived` is None where it could not be tried."""

    what: str
    survived: bool | None
    says: str


@contextmanager
def torn_checkpoint(drill: Drill) -> Iterator[None]:
    """Cut the newest checkpoint's weights in the middle, as a disk does that was not asked to sync."""
    path = drill.newest / checkpoint.MODEL
    os.truncate(path, path.stat().st_size // 2)
    yield


@contextmanager
def full_disk(drill: Drill) -> Iterator[None]:
    """Make room again, afterwards, on the run's disk, which is a small one of its own."""
    yield
    (drill.folder.path / BALLAST).unlink(missing_ok=True)


@contextmanager
def vanished_shard(drill: Drill) -> Iterator[None]:
    """Take away the shard that the next step begins with."""
    index = drill.job.index
    sample = int(drill.job.order.views(drill.saved, 0).samples[0])
    link = Path(drill.job.data) / "train" / index.shards[index.shard_of(sample)].name
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
    Fault("a vanished shard", r"\.tar: missing", "none", vanished_shard),
)


def drill(job: Job, recipe: str, arguments: list[str], config: str) -> int:
    """Drill a job, print what survived, and return 1 if anything did not; data is made up where there is none."""
    processes = job.hosting.processes
    small = drilled(job.recipe, processes)
    with tempfile.TemporaryDirectory(prefix="vitrail-drill-") as scratch:
        root = Path(scratch)
        (root / "broken").mkdir()
        dataset = job.dataset or made_up(small, root / "made-up")
        link_shards(dataset, root / "data")
        if lacks_weights(small.distill):
            write_random_weights(small, root / "teacher.safetensors")
            arguments = [*arguments, "--distill.weights", str(root / "teacher.safetensors")]
        job = replace(job, recipe=small, data=str(root / "data"), dataset=dataset, folder=RunFolder(root / "broken"))
        needed = job.checkpoint_bytes * (small.checkpoint.keep + 2) + 2**26
        with small_disk(root / "broken", needed) as has_small_disk:
            broken = Drill(job, recipe, arguments, config)
            unbroken = replace(broken, job=replace(job, folder=RunFolder(root / "unbroken")))
            faults = [fault for fault in FAULTS if has_small_disk or fault.around is not full_disk]
            last_step = (len(faults) + 1) * (STEPS + EVERY)  # more than all sessions take
            name = harmless(small.name)
            print(f"{name}: {last_step} steps of {small.batch} images on {processes} process(es), unbroken ...")
            started = time.monotonic()
            said = session(unbroken, "none", 0, last_step)
            broken = replace(broken, patience=3 * (time.monotonic() - started) + 60)
            if not unbroken.folder.summary.exists():
                raise TrainingError(f"the run does not even end where nothing happens to it:\n{said}")
            outcomes = []
            for fault in faults:
                outcomes.append(meet(broken, unbroken, fault, last_step))
                print(harmless(f"  {fault.what}: {outcomes[-1].says}"), flush=True)
            if not has_small_disk:
                outcomes.append(Outcome("a full disk", None, "not tried: a small disk to fill (tmpfs) needs root"))
            session(broken, "none", 0, last_step)
            outcomes.append(compare(broken, unbroken))
    show(f"Drill of {small.name}: {config}, {processes} process(es)", outcomes)
    return 1 if any(outcome.survived is False for outcome in outcomes) else 0


def meet(broken: Drill, unbroken: Drill, fault: Fault, last_step: int) -> Outcome:
    """Go on with the run up to a fault, and say what it did."""
    started = broken.saved
    if fault.around and not started:
        return Outcome(fault.what, False, "there is no checkpoint to begin with")
    with fault.around(broken) if fault.around else nullcontext():
        said = session(broken, fault.armed, started + STEPS, last_step)
    reached = max((line["step"] for line in train_lines(broken.folder)), default=0)
    try:
        whole = checkpoint.load_newest(broken.folder.checkpoints, lambda _: None)
    except CheckpointError as error:
        return Outcome(fault.what, False, f"no checkpoint is whole: {error}")
    kept = whole.step if whole else 0
    as_expected = re.search(fault.says, said)
    if broken.folder.summary.exists():
        return Outcome(fault.what, False, "the run ended as if nothing had happened")
    if as_expected is None:
        return Outcome(fault.what, False, f"the run did not say {fault.says!r}: {said.strip()[-400:]}")
    if train_lines(broken.folder) != train_lines(unbroken.folder)[:reached]:
        return Outcome(fault.what, False, f"the losses up to step {reached} are not those of the unbroken run")
    return Outcome(fault.what, True, f"steps {started} to {reached}; {reached - kept} to be trained again")


def compare(broken: Drill, unbroken: Drill) -> Outcome:
    """Compare the ends of both runs."""
    what = f"the same command, up to step {train_lines(unbroken.folder)[-1]['step']}"
    if not broken.folder.summary.exists():
        return Outcome(what, False, "the run does not end")
    hashes = [read_json(run.folder.summary, Summary)["weights_sha256"] for run in (broken, unbroken)]
    if hashes[0] != hashes[1] or train_lines(broken.folder) != train_lines(unbroken.folder):
        return Outcome(what, False, f"weights {hashes[0][:16]}, unbroken {hashes[1][:16]}")
    return Outcome(what, True, f"losses and weights as unbroken, bit for bit ({hashes[0][:16]})")


def train_lines(folder: RunFolder) -> list[dict[str, Any]]:
    """Return what a run logged of its steps, without what the clock decides."""
    return [{name: line.get(name) for name in ("step", "loss", "grad_norm")} for line in folder.logged("train")]


def session(broken: Drill, fault: str, step: int, last_step: int) -> str:
    """Start the run's processes, wait for their end, and return what they said."""
    job = broken.job
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(config_file(broken.config)), "--num_processes", str(job.hosting.processes)]
    launch += ["--main_process_port", "0"]
    run = ["-m", "launch.saboteur", fault, str(step), broken.recipe, *broken.arguments]
    run += ["--data", job.data, "--output", str(job.folder), "--max-steps", str(last_step)]
    # a session of its own, so that all its processes can be ended
    with subprocess.Popen(  # noqa: S603
        [*launch, *run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            return process.communicate(timeout=broken.patience)[0]
        except subprocess.TimeoutExpired:
            return f"It did not end within {broken.patience:.0f} s."
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def link_shards(dataset: Dataset, folder: Path) -> None:
    """Make a data set of links to another's training shards."""
    (folder / "train").mkdir(parents=True)
    for path in dataset.splits["train"].folder.iterdir():
        (folder / "train" / path.name).symlink_to(path.resolve())
    write_dataset(folder, dataset.classes, {"train": dataset.splits["train"]})


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
    table = Table(title=plain(title), show_header=False)
    marks = {True: Text("survived", "green"), False: Text("NOT SURVIVED", "red"), None: Text("-")}
    for outcome in outcomes:
        table.add_row(plain(outcome.what), marks[outcome.survived], plain(outcome.says))
    Console().print(table)
