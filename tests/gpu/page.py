"""The page that `make gpu` writes: what was checked on a card, and how fast it is, to paste into an issue."""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from tests.running import ROOT

PEAKS = {  # FLOP/s of dense matrix products in bf16, of a V100 in fp16, by a part of the card's name
    "v100": 125e12,  # NVIDIA V100 data sheet, "Tensor Performance"
    "a100": 312e12,  # NVIDIA A100 data sheet, "BFLOAT16 Tensor Core"
    "h100": 989e12,  # NVIDIA H100 data sheet, "BFLOAT16 Tensor Core", half of that with sparsity
}
WORDS = {"passed": "PASS", "failed": "FAIL", "skipped": "not run"}


class Check(NamedTuple):
    """A test: what it shows, how it ended, and the figures that it measured."""

    name: str
    outcome: str  # pytest's word
    figures: Sequence[tuple[str, str]]


def written(checks: Sequence[Check], machine: dict[str, str]) -> str:
    """Return the page, in Markdown."""
    failed = sum(check.outcome == "failed" for check in checks)
    verdict = f"{failed} of {len(checks)} checks FAILED" if failed else f"{len(checks)} checks, none failed"
    lines = [f"# Vitrail on {machine['card']}", "", f"`make gpu`: {verdict}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in machine.items()]
    lines += ["", "| check | | figures |", "|---|---|---|"]
    for check in checks:
        figures = "; ".join(f"{name}: {value}" for name, value in check.figures)
        lines.append(f"| {cell(check.name)} | {WORDS[check.outcome]} | {cell(figures)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def machine() -> dict[str, str]:
    """Return what a figure's reader asks about the machine."""
    return {
        "card": card(),
        "cards": str(torch.cuda.device_count()),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "cores": str(torch.get_num_threads()),
        "Python": platform.python_version(),
        "commit": said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def peak_of(name: str) -> float | None:
    """Return the peak of a card by its name, None of one that is not in the table."""
    return next((peak for part, peak in PEAKS.items() if part in name.lower()), None)


def card() -> str:
    """Return the name of the card, or the processor where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU ({platform.machine()})"


def said(*command: str) -> str:
    """Return what a program says, nothing where there is no such program or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not known"
