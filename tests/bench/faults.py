"""The drill's faults, done to a plain loop: what is left of its training, and whether it goes on.

python tests/bench/faults.py DATA     (DATA: vitrail shards build digits DATA; as root, for a small disk)

Prints a table for docs/faults.md. Each fault breaks a run of its own at its 8th step, or in the save of its 6th; then
the same command is given again, up to 12 steps.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from launch.drill import small_disk

STEPS = 12


def in_a_step(harm: Callable[[Path], None], folder: Path) -> None:
    step = torch.optim.AdamW.step
    taken = []

    def interrupted(self: torch.optim.AdamW, *arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 8:
            harm(folder)
        return step(self, *arguments)

    torch.optim.AdamW.step = interrupted  # type: ignore[method-assign]


def in_a_save(folder: Path) -> None:
    save = torch.save

    def interrupted(state: Any, path: Path) -> None:
        save(state, path)
        if state["step"] == 6:
            os.truncate(path, path.stat().st_size // 2)  # what a kill amid the write leaves
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = interrupted


def fill_the_disk(folder: Path) -> None:
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)


def kill(number: int) -> Callable[[Path], None]:
    return lambda folder: in_a_step(lambda _: os.kill(os.getpid(), number), folder)


ARMED: dict[str, Callable[[Path], None]] = {
    "SIGTERM in a step": kill(signal.SIGTERM),
    "SIGKILL in a step": kill(signal.SIGKILL),
    "SIGKILL in a save": in_a_save,
    "a torn checkpoint": kill(signal.SIGKILL),
    "a full disk": lambda folder: in_a_step(fill_the_disk, folder),
    "a vanished shard": lambda folder: None,
}


def child(fault: str, data: str, output: str) -> None:
    """Be the loop, with a fault."""
    from tests.bench.plain_loop import main as train

    if fault in ARMED:
        ARMED[fault](Path(output))
    train(data, output, STEPS)


def session(fault: str, data: Path, folder: Path) -> tuple[int, str]:
    """Run the loop, and return its exit code and its last words."""
    command = [sys.executable, "-m", "tests.bench.faults", "--child", fault, str(data), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return done.returncode, (done.stdout.strip().splitlines() or ["nothing"])[-1]


def steps(folder: Path) -> list[int]:
    """Return the steps that a log has, in its order."""
    path = folder / "log.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")]


def meet(fault: str, data: Path, folder: Path, losses: list[str]) -> str:
    """Break a run, start it again, and say what came of it."""
    shards = folder.parent / "data"
    shutil.copytree(data, shards)
    if fault == "a vanished shard":
        next(iter(sorted((shards / "train").glob("*.tar")))).unlink()
    code, words = session(fault, shards, folder)
    reached = (steps(folder) or [0])[-1]
    told = f"ends with code {code} after step {reached} ({words[:90]})" if code else f"goes on to step {reached}"
    if fault == "a torn checkpoint":
        os.truncate(folder / "checkpoint.pt", (folder / "checkpoint.pt").stat().st_size // 2)
    (folder / "ballast").unlink(missing_ok=True)
    shutil.rmtree(shards)
    code, words = session("none", data, folder)
    if code:
        return f"{told}; started again, it ends with code {code} ({words[:90]})"
    log = (folder / "log.jsonl").read_text().splitlines()
    twice = len(log) - len(set(steps(folder)))
    same = log == losses
    return f"{told}; started again, it ends, {twice} steps twice in its log, losses {'equal' if same else 'differ'}"


def main(data: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = [Path(scratch) / name for name in ("one", "two")]
        logs = []
        for run in runs:
            assert session("none", data, run)[0] == 0
            logs.append((run / "log.jsonl").read_text().splitlines())
        print(f"two unbroken runs of one seed: losses {'equal' if logs[0] == logs[1] else 'differ'}\n")
    print("| fault | a loop with torch.save |\n|---|---|")
    for fault in ARMED:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            folder.mkdir()
            with small_disk(folder, 2**24) as mounted:
                assert mounted, "a small disk needs root"
                print(f"| {fault} | {meet(fault, data, folder, logs[0])} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]))
