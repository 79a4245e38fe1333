"""How the tests run things: in this process where nothing but the numbers matters, as a user does where it does."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from accelerate.state import AcceleratorState

from launch import cli
from pipeline.config import Recipe
from pipeline.folder import RunFolder, TraceLine
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.session.session import Parts
from shards.dataset import Dataset
from shards.files import read_json, read_json_lines
from tests.forks import Program
from tests.tiny import HERE

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"
SCRIPT = PROGRAMS / "tiny.py"
TIMEOUT = 900  # seconds, for what ends: on a slow machine that others use too, an interpreter takes a minute to start
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the tests' own recipes are not installed


def train_here(
    dataset: Dataset | str, folder: Path, recipe: Recipe = HERE, parts: Parts | None = None, **options: Any
) -> int:
    """Run a recipe in this process, on a data set or on data by its name, and return its exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    data = dataset if isinstance(dataset, str) else str(dataset.folder)
    request = Request(recipe=recipe, data=data, output=str(folder), **options)
    return carry_out(request, parts or Parts())


def start(script: Path | str, *arguments: Any, processes: int = 0, env: dict[str, str] | None = None) -> Program:
    """Start a recipe, or `-m` and a module, by itself or on so many processes as a launcher starts them."""
    group = [str(PROGRAMS / "group.py"), str(processes)] if processes else []
    return Program([*group, str(script), *map(str, arguments)], env={**ENVIRONMENT, **(env or {})})


def launcher(config: str, processes: int) -> list[str]:
    """Return what makes Python `accelerate launch` with a configuration of the repository."""
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    return [*command, str(ROOT / f"launch/configs/{config}.yaml"), "--num_processes", str(processes)]


def run(
    script: Path | str, *arguments: Any, processes: int = 0, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end and check its exit code."""
    process = start(script, *arguments, processes=processes, env=env)
    out, err = process.communicate(TIMEOUT)
    assert process.returncode == code, out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_launched(config: str, script: Path | str, *arguments: Any, processes: int) -> str:
    """Run a script by `accelerate launch` with a configuration of the repository, and return what it said."""
    done = subprocess.run(
        [sys.executable, *launcher(config, processes), str(script), *map(str, arguments)],
        cwd=ROOT,  # where the configurations of DeepSpeed say that its files are
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def vitrail(*arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Call `vitrail` in this process and check its exit code: an interpreter with torch takes seconds to start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    command = ["vitrail", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    assert ended.value.code == code, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def vitrail_process(
    *arguments: Any, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `vitrail` as a user does and check its exit code."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "vitrail"), *map(str, arguments)],
        env={**ENVIRONMENT, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of a kind of metrics.jsonl."""
    return RunFolder(folder).logged(kind)


def traces(folder: Path) -> list[dict[str, Any]]:
    """Return what all processes traced, in the order of steps and virtual ranks."""
    files = RunFolder(folder).traces.glob("*.jsonl")
    lines: list[Any] = [line for path in files for line in read_json_lines(path, TraceLine).good]
    return sorted(lines, key=lambda line: (line["step"], line["virtual_rank"]))


def summary(folder: Path) -> dict[str, Any]:
    """Return summary.json."""
    return read_json(RunFolder(folder).summary, dict[str, Any])
