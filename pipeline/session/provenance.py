"""Where a run's numbers come from: recipe.json of its beginning, and what sessions.jsonl says of each session."""

import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.data.version import LIBRARIES as LIBRARIES_OF_VIEWS
from pipeline.devices import device_name
from pipeline.fields import differing, flatten
from pipeline.folder import Beginning
from pipeline.job import Job
from shards.dataset import Dataset
from shards.files import read_json, write_json

LIBRARIES: Final = (*LIBRARIES_OF_VIEWS, "torchvision", "accelerate", "webdataset", "vitrail")
DESCRIBED: Final = ("splits", "notes", "source")  # of dataset.json
REPOSITORY: Final = Path(__file__).parents[2]
CODE: Final = ("launch", "pipeline", "recipes", "shards")


def begin_session(job: Job, device: torch.device, micro_batch: int, from_step: int) -> None:
    """Write what is known of a session at its beginning; of a run's first one, recipe.json too."""
    folder, commit, libraries = job.folder, git_commit(), versions()
    if not from_step or not folder.recipe.exists():
        write_json(
            folder.recipe,
            {
                "recipe": asdict(job.recipe),
                "fingerprints": dict(job.fingerprints),
                "versions": libraries,
                "git_commit": commit,
                "data": {"place": job.data, **described(job.dataset)},
            },
        )
    began, now = flatten(read_json(folder.recipe, Beginning)["recipe"]), flatten(job.recipe)
    hosting = job.hosting
    folder.begin_session(
        {
            "data": str(Path(job.data).absolute()) if Path(job.data).exists() else job.data,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "git_commit": commit,
            "versions": libraries,
            "changed": {name: now.get(name) for name in differing(began, now)},  # since recipe.json
            "processes": hosting.processes,
            "virtual_ranks": hosting.shares(job.recipe.virtual_ranks),
            "engine": hosting.engine,
            "precision": hosting.precision,
            "compiled": hosting.compiled,
            "deterministic": job.recipe.compute.deterministic,  # whether the same hosting gives the same bits
            "micro_batch": micro_batch,
            "workers": hosting.workers,
            "machine": {"host": platform.node(), "system": platform.platform(), "cores": hosting.cores,
                        "processor": torch.backends.cpu.get_cpu_capability(),  # which pixels depend on
                        "device": device_name(device)},
            "resume": str(job.named.resolve()) if job.named and not job.begun else None,
            "from_step": from_step,
        }
    )  # fmt: skip


def described(dataset: Dataset | None) -> dict[str, Any]:
    """Return what dataset.json says, but for the names of classes, of which there may be very many."""
    if dataset is None:
        return {}
    head: dict[str, Any] = {**dataset.head()}
    return {"classes": len(dataset.classes), **{name: head[name] for name in DESCRIBED if name in head}}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    return {library: version(library) for library in LIBRARIES}


def git_commit() -> str | None:
    """Return the commit of Vitrail's own checkout, `-dirty` where its code was changed; None without one or git."""
    program = shutil.which("git")
    if program is None:
        return None
    command = [program, "rev-parse", "--show-toplevel", "HEAD"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S603
    lines = done.stdout.splitlines()
    if len(lines) != 2 or Path(lines[0]).resolve() != REPOSITORY.resolve():
        return None  # an installed package may lie inside somebody else's repository
    command = [program, "diff", "--quiet", "HEAD", "--", *CODE]
    changed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode  # noqa: S603
    return f"{lines[1]}-dirty" if changed == 1 else lines[1]
