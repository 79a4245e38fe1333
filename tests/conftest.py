"""Small data and small recipes that the tests share."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState

from pipeline.config import Augment, Checkpoint, Data, Ema, Eval, Log, Mix, Model, Optim, Recipe
from pipeline.request import Request
from pipeline.run import carry_out
from shards.dataset import Dataset
from shards.synthetic import make_dataset

ROOT = Path(__file__).parent.parent

TINY = Recipe(
    name="tiny",
    model=Model(name="deit_tiny_patch16_224", img_size=16, patch_size=8, width=32, depth=2, heads=2, drop_path=0.3),
    data=Data(classes=4, images=70, repeats=3, window=16, workers=1),
    augment=Augment(crop="resized", rand_ops=2, erase=0.5),
    mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1),
    optim=Optim(lr=1e-3, lr_batch=0, warmup_epochs=1),
    ema=Ema(decay=0.9),
    eval=Eval(every_epochs=0, batch=8, crop_ratio=0.875),
    checkpoint=Checkpoint(every_steps=2, every_minutes=0),
    log=Log(every_steps=1),
    batch=12,
    virtual_ranks=3,
    epochs=4,
    precision="fp32",
)

HERE = replace(TINY, data=replace(TINY.data, workers=0))  # for runs in this process, without loader processes

RECIPE_FILE = """from dataclasses import replace

from pipeline.run import main
from tests.conftest import TINY

RECIPE = TINY

if __name__ == "__main__":
    main(RECIPE)
"""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """70 training and 21 test images of 24 px in 4 classes, in shards of 16."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    return make_dataset(folder, classes=4, size=24, samples={"train": 70, "test": 21})


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file with the tiny recipe."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(RECIPE_FILE)
    return path


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Forget Accelerate's process-wide state and our signal handlers after each run in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def train_here(dataset: Dataset, folder: Path, recipe: Recipe = HERE, **options: Any) -> int:
    """Run a recipe in this process and return its exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return carry_out(Request(recipe=recipe, data=str(dataset.folder), output=str(folder), **options))


def start(
    script: Path, *arguments: Any, processes: int = 1, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a recipe as a user does, on one process or on several."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.accelerate_cli", "launch"]
        command += ["--config_file", str(ROOT / "launch/configs/cpu.yaml"), "--num_processes", str(processes)]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    script: Path, *arguments: Any, processes: int = 1, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end and check its exit code."""
    process = start(script, *arguments, processes=processes, env=env)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_launched(config: str, script: Path | str, *arguments: Any, processes: int) -> str:
    """Run a script by `accelerate launch` with a configuration of the repository, and return what it said."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / f"launch/configs/{config}.yaml"), "--num_processes", str(processes)]
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        cwd=ROOT,  # where the configurations of DeepSpeed say that its files are
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def vitrail(
    *arguments: Any, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `vitrail` as a user does and check its exit code."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "vitrail"), *map(str, arguments)],
        env={**(env or os.environ), "PYTHONPATH": str(ROOT)},  # the tests' own recipe is not installed
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of a kind of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def traces(folder: Path) -> list[dict[str, Any]]:
    """Return what all processes traced, in the order of steps and virtual ranks."""
    lines = [json.loads(line) for path in (folder / "trace").glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["virtual_rank"]))


def summary(folder: Path) -> dict[str, Any]:
    """Return summary.json."""
    return json.loads((folder / "summary.json").read_text())
