"""`vitrail doctor`: what a run will need of this machine, tried in seconds before it is asked for hours."""

import os
import shutil
import socket
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.verb import RecipeVerb, resolved
from pipeline.config import Recipe
from pipeline.data.loader import SHARED_MEMORY, free_shared_memory
from pipeline.data.version import processor_note
from pipeline.devices import ALONE, current, device_name, memory
from pipeline.hosting import Hosting, loader_workers
from pipeline.job import PLANNING, Job, open_data
from pipeline.session.provenance import versions
from shards.decode import decode
from shards.errors import VitrailError
from shards.locks import has_locks
from shards.parallel import allowed_cores
from shards.reader import Reader
from shards.terminal import plain

PATIENCE: Final = 30  # seconds for an all-reduce
SKEW: Final = 5.0  # seconds between this clock and a file system's that are worth a word


@dataclass(frozen=True)
class Finding:
    """What one check found; `ok` is None where there was nothing to check."""

    what: str
    ok: bool | None
    says: str


@dataclass(frozen=True, kw_only=True)
class Doctor(RecipeVerb):
    """Try in seconds what a run will need: devices, ports, an all-reduce, shared memory, disk, clock, locks, shards.

    Under a launcher (accelerate launch -m launch.cli doctor ...) the all-reduce is over its processes, on all nodes.
    Takes the recipe's own fields too: --data, --output, --data.workers, ...

    Example: vitrail doctor deit_small --data DIR --output OUT
    """

    reads = ("--data", "--output")

    def __call__(self, arguments: list[str]) -> int:
        """Print a table; return 1 if something is bad."""
        request = self.request(arguments)
        job = resolved(replace(request, data=""), PLANNING)  # data that cannot be used is a finding
        findings = examine(job, request.data)
        if job.hosting.main:
            show(findings)
        return 1 if any(finding.ok is False for finding in findings) else 0


VERB: Final = Doctor


def examine(job: Job, data: str) -> list[Finding]:
    """Return all findings for running a job on this machine, with the data that was named."""
    return [
        devices(job),
        processor(),
        libraries(),
        name_and_port(),
        all_reduce(job.hosting, torch.accelerator.device_count() or 2),
        shared_memory(job),
        disk(job),
        clock(job),
        locks(job),
        shards(data, job.recipe),
    ]


def devices(job: Job) -> Finding:
    """Which devices there are, and what `--precision auto` becomes on them."""
    device = current()
    free, total = memory(device)
    if device.type == "cpu":
        found = f"no GPU; {len(allowed_cores())} cores, {free / 2**30:.1f} GiB of memory free"
    else:
        found = (
            f"{torch.accelerator.device_count()} x {device_name(device)} ({device.type}), "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first"
        )
    return Finding("devices", True, f"{found}; precision {job.recipe.precision} is {job.hosting.precision}")


def processor() -> Finding:
    """Whether the processor makes the pixels that those with AVX2 make; others train as well, on their own."""
    note = processor_note()
    return Finding("processor", None if note else True, note or torch.backends.cpu.get_cpu_capability())


def libraries() -> Finding:
    """Which versions are installed."""
    return Finding("libraries", True, ", ".join(f"{name} {number}" for name, number in versions().items()))


def name_and_port() -> Finding:
    """Whether this host finds itself by name, which is how ranks find each other, and can open a port."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(item[4][0]) for item in socket.getaddrinfo(name, None)})
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection((addresses[0], port), timeout=5).close()
        return Finding("name, port", True, f"{name} is {', '.join(addresses)}; a port was opened and reached")
    except OSError as error:
        return Finding("name, port", False, f"{name}: {error}. Name an address: --main_process_ip, or mend /etc/hosts")


def all_reduce(hosting: Hosting, processes: int) -> Finding:
    """Whether processes can add up a tensor, over the backend that training takes.

    Those are the processes of the launcher, on all its nodes, where one has started this; else some started here.
    """
    device = current()
    if device.type in ALONE:
        return Finding("all-reduce", None, f"on {device.type} a run is one process")
    backend = dist.get_default_backend_for_device(device)
    launched = hosting.processes
    processes = launched if launched > 1 else processes
    started = time.monotonic()
    try:
        if launched > 1:
            _add_up(hosting.process, processes, device.type, "env://", hosting.local_process)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = (processes, device.type, f"file://{scratch}/store")
                torch.multiprocessing.spawn(_add_up, arguments, nprocs=processes)
    except Exception as error:  # whatever a process died of, it is the finding
        return Finding("all-reduce", False, f"{processes} processes, {backend}: {str(error).strip().splitlines()[-1]}")
    return Finding("all-reduce", True, f"{processes} processes, {backend}: {time.monotonic() - started:.1f} s in all")


def _add_up(rank: int, processes: int, kind: str, meeting: str, number: int | None = None) -> None:
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, rank if number is None else number)
    backend = dist.get_default_backend_for_device(device)
    limit = timedelta(seconds=PATIENCE)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # else NCCL's watchdog ends the process, and nobody says why
    dist.init_process_group(backend, meeting, rank=rank, world_size=processes, timeout=limit)
    numbers = torch.full((1_000_000,), float(rank), device=device)
    dist.all_reduce(numbers)
    if numbers[-1].item() != sum(range(processes)):
        raise ArithmeticError(f"the sum is {numbers[-1].item()}, not {sum(range(processes))}")
    dist.destroy_process_group()


def shared_memory(job: Job) -> Finding:
    """Whether the batches that loader workers prepare ahead fit into shared memory."""
    free = free_shared_memory()
    if free is None:
        return Finding("shared memory", None, f"no {SHARED_MEMORY} on this system")
    processes = max(job.hosting.local_processes, torch.accelerator.device_count())
    workers = loader_workers(job.recipe, max(1, job.hosting.cores * job.hosting.local_processes // processes))
    needed = replace(job, hosting=replace(job.hosting, local_processes=processes)).shared_memory(workers)
    remedy = "" if free >= needed else "; fewer --data.workers, or a larger one (docker run --shm-size)"
    found = f"{free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB for {processes * workers} loader workers{remedy}"
    return Finding("shared memory", free >= needed, found)


def disk(job: Job) -> Finding:
    """Whether the checkpoints that are kept, and one that is being written, fit on the disk."""
    existing, needed = job.folder.existing, job.checkpoint_space
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    found = f"{existing}: {free / 1e9:.1f} GB free, {needed / 1e9:.2f} GB for checkpoints" + (
        "" if writable else "; not writable"
    )
    return Finding("disk", free > needed and writable, found)


def clock(job: Job) -> Finding:
    """Whether this clock and that of the output's file system agree; logs of several nodes are sorted by them."""
    existing = job.folder.existing
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            skew = abs(os.stat(file.name).st_mtime - time.time())
    except OSError as error:
        return Finding("clock", None, f"{existing}: {error.strerror}")
    return Finding("clock", skew < SKEW, f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {skew:.1f} s from the disk's")


def locks(job: Job) -> Finding:
    """Whether the output's file system has locks, which keep a second process out of a run and end with the first."""
    existing = job.folder.existing
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            there = has_locks(file.fileno(), existing)
    except (VitrailError, OSError) as error:
        return Finding("locks", False if isinstance(error, VitrailError) else None, str(error))
    if there:
        return Finding("locks", True, f"{existing} has them")
    return Finding("locks", None, f"{existing} has none: a file is the lock, and one that a kill leaves may have to go")


def shards(data: str, recipe: Recipe) -> Finding:
    """Whether the first and the last image of every shard can be read and decoded; of a split behind a URL, of one."""
    if not data:
        return Finding("shards", None, "no --data named")
    try:
        dataset = open_data(data, recipe)
        count, started = 0, time.monotonic()
        for index in dataset.splits.values():
            bounds = index.starts[: 2 if index.cache else None]  # a shard behind a URL is fetched as a whole
            ends = np.concatenate([bounds[:-1], bounds[1:] - 1])
            with closing(Reader(index)) as reader:
                for sample in sorted(set(ends.tolist())):
                    content = reader.read(sample)
                    decode(content, index.key(sample))
                    count += 1
    except (VitrailError, OSError) as error:
        return Finding("shards", False, str(error))
    remote = any(index.cache for index in dataset.splits.values())
    each = "one shard of each split (none of the others was fetched)" if remote else "each shard"
    found = f"{data}: {count} images, the first and last of {each}, in {time.monotonic() - started:.1f} s"
    return Finding("shards", True, found)


def show(findings: list[Finding]) -> None:
    """Print findings as a table."""
    table = Table(show_header=False)
    marks = {True: Text("ok", "green"), False: Text("BAD", "red"), None: Text("-")}
    for finding in findings:
        table.add_row(plain(finding.what), marks[finding.ok], plain(finding.says))
    Console().print(table)
