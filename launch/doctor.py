"""Preflight: what a run will need of this machine, tried in seconds before it is asked for hours."""

import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from pipeline.batch import LOOK_AHEAD
from pipeline.config import Recipe
from pipeline.decode import decode
from pipeline.hosting import loader_workers, processes_of_launch, resolve_precision
from pipeline.models import on_paper, parameter_count
from pipeline.request import BYTES_A_PARAMETER
from pipeline.session import LIBRARIES
from shards.dataset import read_dataset
from shards.errors import VitrailError
from shards.reader import Reader

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  where loader workers hand their batches over
PATIENCE: Final = 30  # seconds for an all-reduce
SKEW: Final = 5.0  # seconds between this clock and a file system's that are worth a word


@dataclass(frozen=True)
class Finding:
    """What one check found; `well` is None where there was nothing to check."""

    what: str
    well: bool | None
    says: str


def examine(recipe: Recipe, data: str, output: Path) -> list[Finding]:
    """Return all findings for running a recipe on this machine."""
    return [
        devices(recipe),
        libraries(),
        name_and_port(),
        all_reduce(max(2, torch.accelerator.device_count())),
        shared_memory(recipe),
        disk(recipe, output),
        clock(output),
        shards(data),
    ]


def devices(recipe: Recipe) -> Finding:
    """Which devices there are, and what `--precision auto` becomes on them."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        told = f"{len(names)} x {names[0]}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first"
    else:
        cores = len(psutil.Process().cpu_affinity())
        told = f"no GPU; {cores} cores, {psutil.virtual_memory().available / 2**30:.1f} GiB of memory free"
    return Finding("devices", True, f"{told}; precision {recipe.precision} is {resolve_precision(recipe.precision)}")


def libraries() -> Finding:
    """Which versions are installed."""
    return Finding("libraries", True, ", ".join(f"{name} {version(name)}" for name in LIBRARIES))


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


def all_reduce(processes: int) -> Finding:
    """Whether processes can add up a tensor, over the backend that training takes.

    Those are the processes of the launcher, on all its nodes, where one has started this; else some started here.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    launched, process = processes_of_launch()
    processes = launched if launched > 1 else processes
    started = time.monotonic()
    try:
        if launched > 1:
            _add_up(process, processes, backend, "env://", int(os.environ["LOCAL_RANK"]))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = (processes, backend, f"file://{scratch}/store")
                torch.multiprocessing.spawn(_add_up, arguments, nprocs=processes)
    except Exception as error:  # whatever a process died of, it is the finding
        return Finding("all-reduce", False, f"{processes} processes, {backend}: {str(error).strip().splitlines()[-1]}")
    return Finding("all-reduce", True, f"{processes} processes, {backend}: {time.monotonic() - started:.1f} s in all")


def _add_up(rank: int, processes: int, backend: str, meeting: str, number: int | None = None) -> None:
    device = torch.device(f"cuda:{rank if number is None else number}" if backend == "nccl" else "cpu")
    limit = timedelta(seconds=PATIENCE)
    dist.init_process_group(backend, meeting, rank=rank, world_size=processes, timeout=limit)
    numbers = torch.full((1_000_000,), float(rank), device=device)
    dist.all_reduce(numbers)
    if numbers[-1].item() != sum(range(processes)):
        raise ArithmeticError(f"the sum is {numbers[-1].item()}, not {sum(range(processes))}")
    dist.destroy_process_group()


def shared_memory(recipe: Recipe) -> Finding:
    """Whether the batches that loader workers prepare ahead fit into shared memory."""
    if not SHARED_MEMORY.exists():
        return Finding("shared memory", None, f"no {SHARED_MEMORY} on this system")
    processes = max(1, torch.accelerator.device_count())
    workers = processes * loader_workers(recipe.data.workers)
    needed = workers * LOOK_AHEAD * recipe.rank_batch * 3 * recipe.model.img_size**2
    free = shutil.disk_usage(SHARED_MEMORY).free
    remedy = "" if free > needed else "; fewer --data.workers, or a larger one (docker run --shm-size)"
    told = f"{free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB for {workers} loader workers{remedy}"
    return Finding("shared memory", free > needed, told)


def disk(recipe: Recipe, output: Path) -> Finding:
    """Whether the checkpoints that are kept, and one that is being written, fit on the disk."""
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    size = parameter_count(on_paper(recipe)) * BYTES_A_PARAMETER
    needed = size * (recipe.checkpoint.keep + 1)
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    told = f"{there}: {free / 1e9:.1f} GB free, {needed / 1e9:.2f} GB for checkpoints" + (
        "" if writable else "; not writable"
    )
    return Finding("disk", free > needed and writable, told)


def clock(output: Path) -> Finding:
    """Whether this clock and that of the output's file system agree; logs of several nodes are sorted by them."""
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            skew = abs(os.stat(file.name).st_mtime - time.time())
    except OSError as error:
        return Finding("clock", None, f"{there}: {error.strerror}")
    return Finding("clock", skew < SKEW, f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {skew:.1f} s from the disk's")


def shards(data: str) -> Finding:
    """Whether the first and the last image of every shard can be read and decoded."""
    if not data:
        return Finding("shards", None, "no --data named")
    try:
        dataset = read_dataset(Path(data))
        count, started = 0, time.monotonic()
        for index in dataset.splits.values():
            reader = Reader(index)
            ends = np.concatenate([index.starts[:-1], index.starts[1:] - 1])
            for sample in sorted(set(ends.tolist())):
                decode(reader.read(sample), index.key(sample))
                count += 1
    except (VitrailError, OSError) as error:
        return Finding("shards", False, str(error))
    told = f"{data}: {count} images, the first and last of each shard, in {time.monotonic() - started:.1f} s"
    return Finding("shards", True, told)


def show(findings: list[Finding]) -> None:
    """Print findings as a table."""
    table = Table(show_header=False)
    marks = {True: "[green]well[/]", False: "[red]BAD[/]", None: "-"}
    for finding in findings:
        table.add_row(finding.what, marks[finding.well], finding.says)
    Console().print(table)
