"""`vitrail slurm` against a real sbatch."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.dataset import Dataset
from tests.conftest import ROOT
from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.dist


def vitrail_slurm(slurm: Slurm, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "vitrail"), "slurm", *arguments]
    environment = {**slurm.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_script_is_filled_in_checked_and_submitted(
    slurm: Slurm, dataset: Dataset, script: Path, tmp_path: Path
) -> None:
    job = [str(script), "--nodes", "2", "--gpus-per-node", "0", "--config", "cpu", "--time", "10"]
    recipe = ["--data", str(dataset.folder), "--output", str(tmp_path / "a run"), "--virtual-ranks", "2"]
    printed = vitrail_slurm(slurm, *job, *recipe)
    assert printed.returncode == 0, printed.stderr
    assert "#SBATCH --nodes=2\n" in printed.stdout
    assert f"set -- {script} --data {dataset.folder} --output '{tmp_path}/a run' --virtual-ranks 2\n" in printed.stdout
    assert "sbatch: Job" in printed.stderr
    submitted = vitrail_slurm(slurm, *job, *recipe, "--submit")
    number = submitted.stdout.split()[-1]
    assert slurm.state(number) in ("PENDING", "RUNNING"), submitted.stderr
    slurm.run("scancel", number)


def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(slurm: Slurm, dataset: Dataset, script: Path) -> None:
    recipe = ["--data", str(dataset.folder), "--output", "/proc/nowhere"]
    refused = vitrail_slurm(slurm, str(script), "--nodes", "9", "--gpus-per-node", "8", *recipe)
    assert refused.returncode == 2
    assert "72 processes cannot host --virtual-ranks 3" in refused.stderr
    assert "/proc/nowhere" in refused.stderr
    too_many = vitrail_slurm(
        slurm, str(script), "--nodes", "3", "--gpus-per-node", "0", "--data", str(dataset.folder), "--time", "10"
    )
    assert too_many.returncode == 2
    assert "sbatch refuses the job" in too_many.stderr
