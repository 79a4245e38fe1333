"""`vitrail slurm` against a real sbatch, and the preflight that a job runs."""

import sys
from pathlib import Path

import pytest

from shards.dataset import Dataset
from tests.running import ROOT, SCRIPT, metrics, vitrail, vitrail_process
from tests.slurm.conftest import Slurm

pytestmark = pytest.mark.dist
NOT_ACTIVE = "/usr/sbin:/usr/bin:/sbin:/bin"  # a PATH of no environment


def test_a_script_is_filled_in_checked_and_submitted(
    slurm: Slurm, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [str(SCRIPT), "--nodes", "2", "--gpus-per-node", "0", "--config", "cpu", "--time", "10"]
    recipe = [
        "--data",
        str(dataset.folder),
        "--output",
        str(tmp_path / "a run"),
        "--virtual-ranks",
        "2",
        "--max-steps",
        "3",
    ]
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    printed = vitrail("slurm", *job, *recipe)
    assert "#SBATCH --nodes=2\n" in printed.stdout
    assert (
        f"set -- {SCRIPT} --data {dataset.folder} --output '{tmp_path}/a run' --virtual-ranks 2 --max-steps 3\n"
        in printed.stdout
    )
    assert "sbatch: Job" in printed.stderr
    environment = {**slurm.environment, "PATH": NOT_ACTIVE}
    submitted = vitrail_process("slurm", *job, *recipe, "--submit", env=environment, cwd=tmp_path)
    number = submitted.stdout.split()[-1]
    # in the environment that submitted it, whatever PATH says
    ended = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert ended == "COMPLETED", "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert metrics(tmp_path / "a run", "train")[-1]["step"] == 3


def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(
    slurm: Slurm, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    recipe = ["--data", str(dataset.folder), "--output", "/proc/nowhere"]
    job = ["slurm", SCRIPT, "--nodes", 9, "--gpus-per-node", 8]
    refused = vitrail(*job, *recipe, code=2).stderr
    assert "72 processes cannot host --virtual-ranks 3" in refused
    assert "/proc/nowhere" in refused
    job = ["slurm", SCRIPT, "--nodes", 2, "--gpus-per-node", 1, "--config", "deepspeed_zero1"]
    refused = vitrail(*job, "--data", dataset.folder, code=2).stderr
    assert "2 processes cannot host --virtual-ranks 3 under zero1" in refused
    job = ["slurm", SCRIPT, "--nodes", 3, "--gpus-per-node", 0, "--time", 10]
    refused = vitrail(*job, "--data", dataset.folder, code=2).stderr
    assert "sbatch refuses the job" in refused


def test_a_job_can_examine_its_nodes_before_the_run(slurm: Slurm, dataset: Dataset, tmp_path: Path) -> None:
    environment = {"ENGINE": "cpu", "PROCESSES_PER_NODE": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHON": sys.executable, "PATH": NOT_ACTIVE}
    command = ["sbatch", "--parsable", "--nodes=2", f"--chdir={tmp_path}", f"--output={tmp_path}/said.out"]
    command += [
        str(ROOT / "slurm" / "train.sbatch"),
        "-m",
        "launch.cli",
        "doctor",
        str(SCRIPT),
        "--data",
        str(dataset.folder),
    ]
    job = slurm.run(*command, "--output", str(tmp_path / "run"), environment=environment).strip()
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", (tmp_path / "said.out").read_text()
    assert (tmp_path / "said.out").read_text().count("2 processes, gloo") == 1


def test_a_job_whose_environment_has_no_vitrail_fails_at_once_and_says_so(slurm: Slurm, tmp_path: Path) -> None:
    environment = {"PYTHON": "/usr/bin/false", "PATH": NOT_ACTIVE}
    command = ["sbatch", "--parsable", "--nodes=2", f"--chdir={tmp_path}", f"--output={tmp_path}/said.out"]
    job = slurm.run(*command, str(ROOT / "slurm" / "train.sbatch"), "recipe.py", environment=environment).strip()
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "FAILED"
    said = (tmp_path / "said.out").read_text()
    assert said.splitlines() == [
        "train.sbatch: /usr/bin/false does not find Vitrail; activate its environment, or name its Python: "
        "PYTHON=... sbatch ..."
    ]
