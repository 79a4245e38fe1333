"""slurm/train.sbatch on a real controller: what a cluster does to a run, and that the run does not notice."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from shards.dataset import Dataset
from tests.running import PROGRAMS, ROOT, metrics, summary, traces
from tests.slurm.conftest import Slurm, wait_for
from tests.tiny import STEPS

pytestmark = pytest.mark.dist


@dataclass(frozen=True)
class Job:
    """A training on two nodes with a process each."""

    slurm: Slurm
    number: str
    folder: Path

    @property
    def said(self) -> str:
        """What it printed."""
        return Path(f"{self.folder}.out").read_text()

    def reach(self, step: int) -> None:
        """Wait until a step is logged."""
        path = self.folder / "metrics.jsonl"
        wait_for(lambda: path.exists() and f'"step": {step},' in path.read_text(), f"step {step}")

    def end(self) -> None:
        """Wait for the end, which must be a good one."""
        ended = self.slurm.wait_for(
            self.number,
            "COMPLETED",
            "FAILED",
            "NODE_FAIL",
            "CANCELLED",
            "TIMEOUT",
        )
        assert ended == "COMPLETED", f"{ended}: {self.said}"
        assert [line["step"] for line in metrics(self.folder, "train")] == list(range(1, STEPS + 1))


Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def submit(slurm: Slurm, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Submits trainings of 20 steps of half a second."""

    def submit(*options: str, pause: float = 0.5, recipe: Sequence[str] = ()) -> Job:
        folder = tmp_path_factory.mktemp("job")
        script, output = PROGRAMS / "slow.py", folder / "run"
        environment = {"ENGINE": "cpu", "PROCESSES_PER_NODE": "1", "PYTHONPATH": str(ROOT), "PAUSE": str(pause)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = ["sbatch", "--parsable", "--nodes=2", f"--chdir={ROOT}", f"--output={output}.out", *options]
        command += ["slurm/train.sbatch", str(script), "--data", str(dataset.folder), *recipe]
        number = slurm.run(*command, "--output", str(output), "--trace-samples", environment=environment).strip()
        return Job(slurm, number, output)

    return submit


@pytest.fixture(scope="module")
def unbroken(submit: Submit) -> Path:
    """The folder of a job that nothing happened to."""
    job = submit()
    job.end()
    assert "2 virtual ranks of 6 images on 2 process(es) (1, 1)" in job.said
    assert "1 core(s) each" in job.said
    return job.folder


def test_a_job_has_the_cores_that_it_asks_for_and_says_how_many(submit: Submit) -> None:
    job = submit("--nodes=1", "--cpus-per-task=2", pause=0)
    job.end()
    assert "2 core(s) each" in job.said
    assert "worker(s) on 2 core(s) give about" in job.said


def assert_equal(job: Job, unbroken: Path) -> None:
    """A job saw the same views as the unbroken one, and ended with the same weights."""
    assert traces(job.folder) == traces(unbroken)
    assert summary(job.folder)["weights_sha256"] == summary(unbroken)["weights_sha256"]


def test_a_job_that_reaches_its_time_limit_saves_queues_itself_and_ends_with_the_same_weights(
    submit: Submit, unbroken: Path
) -> None:
    job = submit("--time=3", "--signal=B:USR1@60", pause=6)  # SLURM looks every 30 seconds
    job.end()
    assert "Stopped on request; a checkpoint is saved" in job.said
    assert f"stopped on request; queueing job {job.number} again" in job.said
    assert_equal(job, unbroken)


def test_a_wrong_request_is_said_once_and_its_code_is_the_jobs(submit: Submit) -> None:
    job = submit("--nodes=1", recipe=["--batch", "7"])
    assert job.slurm.wait_for(job.number, "COMPLETED", "FAILED", "TIMEOUT") == "FAILED", job.said
    assert job.said.count("the request cannot be run") == 1, job.said
    assert "ExitCode=2:0" in job.slurm.run("scontrol", "show", "job", "-o", job.number)


def test_a_rank_that_is_killed_is_started_again_with_the_others(submit: Submit, unbroken: Path) -> None:
    job = submit()
    job.reach(5)
    ranks = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if str(job.folder) in (process.info["cmdline"] or ()) and (process.info["environ"] or {}).get("RANK") == "1"
    ]
    ranks[0].kill()
    job.end()
    assert_equal(job, unbroken)


def test_a_node_whose_daemon_is_killed_gives_its_job_back_to_the_queue(
    slurm: Slurm, submit: Submit, unbroken: Path
) -> None:
    job = submit(pause=3)  # the controller takes ten seconds and more to miss it
    job.reach(5)
    slurm.kill_node("n1")
    slurm.wait_for(job.number, "PENDING")
    slurm.start_node("n1")
    job.end()
    assert_equal(job, unbroken)


def test_a_two_node_job_queued_again_on_one_node_goes_on_with_the_same_views(
    slurm: Slurm, submit: Submit, unbroken: Path
) -> None:
    job = submit()
    job.reach(5)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)  # what --signal sends before the time limit
    slurm.wait_for(job.number, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job.number}", "NumNodes=1", "NumTasks=1")
    job.end()
    assert "2 virtual ranks of 6 images on 1 process(es) (2)" in job.said
    assert traces(job.folder) == traces(unbroken)
    losses = [[line["loss"] for line in metrics(folder, "train")] for folder in (job.folder, unbroken)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_job_that_is_preempted_queues_itself_and_one_that_is_cancelled_saves_and_stays_ended(
    slurm: Slurm, submit: Submit
) -> None:
    job = submit(pause=2)
    job.reach(3)
    slurm.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={os.devnull}", "--wrap=sleep 1")
    slurm.wait_for(job.number, "PENDING")
    (stopped,) = metrics(job.folder, "event")
    job.reach(stopped["step"] + 1)
    slurm.run("scancel", job.number)
    assert slurm.wait_for(job.number, "PENDING", "CANCELLED") == "CANCELLED"
    wait_for(lambda: not slurm.run("squeue", "-h"), "the job to end")
    assert job.said.count("Stopped on request; a checkpoint is saved") == 2
    assert job.said.count("queueing job") == 1
