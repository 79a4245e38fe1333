"""What a launcher says of its processes, and what it says that nobody reads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.hosting import hosting_of_launch
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import ENVIRONMENT, SCRIPT, run
from tests.tiny import HERE

GROUP = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Return what is wrong with the variables of a launcher."""
    for name in (*GROUP, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        hosting_of_launch(HERE)
    except BadRequest as error:
        return [problem.sentence for problem in error.problems]
    return []


def test_the_variables_of_a_launcher_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, **GROUP) == []
    hosted = hosting_of_launch(HERE)
    assert (hosted.processes, hosted.process, hosted.local_process) == (2, 1, 1)


def test_one_process_that_is_numbered_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, WORLD_SIZE="1", RANK="0") == []  # as a pod of Kubernetes has them


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4: a launcher's variables without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        ),
        ({"RANK": "3"}, "`unset RANK` to train with one process"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: a launcher's variables without WORLD_SIZE, RANK"),
        ({**GROUP, "MASTER_PORT": ""}, "a launcher's variables without MASTER_PORT, as one leaves them over"),
        ({**GROUP, "RANK": "2"}, "RANK=2 is none of WORLD_SIZE=2"),
        ({**GROUP, "RANK": "-1"}, "RANK=-1 is no number"),
        ({"WORLD_SIZE": "$(SIZE)"}, "WORLD_SIZE=$(SIZE) is no number: `unset WORLD_SIZE`"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes (OMPI_COMM_WORLD_SIZE)"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes (SLURM_STEP_NUM_TASKS)"),
    ],
)
def test_variables_that_cannot_be_a_group_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    (found,) = problems(monkeypatch, **variables)
    assert sentence in found


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            ("--mixed_precision fp16", "fp32 here", "bf16 and fp32 are what", "Set it to no, in"),
        ),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, ("--mixed_precision fp8", "fp32 here")),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ("--mixed_precision bf16", "fp32 here", "--precision bf16")),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            ("--gradient_accumulation_steps 4", "Set it to 1, in", "--micro-batch"),
        ),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, ("--dynamo_backend INDUCTOR", "--compute.compile")),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, ("--fsdp_offload_params true",)),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, ("--compute.activation-checkpointing",)),
    ],
)
def test_what_accelerate_was_told_and_nobody_reads_is_refused_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: tuple[str, ...]
) -> None:
    (found,) = problems(monkeypatch, **variables)
    assert all(word in found for word in words), found


def test_what_accelerate_says_of_itself_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    said |= {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "FSDP_OFFLOAD_PARAMS": "false"}
    assert problems(monkeypatch, **said) == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert hosting_of_launch(replace(HERE, precision="bf16")).precision == "bf16"


@pytest.mark.parametrize("told", [["--gradient_accumulation_steps", "4"], ["--gradient-accumulation-steps=4"]])
def test_accumulation_is_seen_where_accelerate_hands_it_on_to_nobody(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: ["python", "accelerate", "launch", *told, "recipe.py"])
    (found,) = problems(monkeypatch)
    assert "--gradient_accumulation_steps 4 is not read" in found


@pytest.mark.dist
def test_empty_variables_of_a_launcher_train_one_process(dataset: Dataset, tmp_path: Path) -> None:
    empty = dict.fromkeys((*GROUP, "LOCAL_WORLD_SIZE"), "")
    run(SCRIPT, "--data", dataset.folder, "--output", tmp_path, "--max-steps", 1, env=empty)


@pytest.mark.dist
def test_a_group_that_does_not_form_says_which_variables_speak_of_it() -> None:
    program = "from pipeline import hosting; from pipeline.config import Compute; hosting.PATIENCE = 0.5; "
    program += "hosting.build_accelerator(hosting.Hosting(processes=2), Compute())"
    variables = {**GROUP, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**ENVIRONMENT, **variables}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        said = next(line for line in process.stderr if "has waited" in line)
        process.kill()
    assert "Process 0 of 2 has waited 0.5 s" in said
    assert "WORLD_SIZE=2 RANK=0" in said
