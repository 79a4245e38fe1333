"""`vitrail slurm` without a cluster: what a job script is made of, and what is kept out of it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slurm
from launch.cli import call
from launch.slurm import ROOT, Resources, job_script
from launch.verb import config_file
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import ENVIRONMENT, SCRIPT

ODD = ("it's a run", 'data $HOME "x"', "`id`", "$(id)", "a\\b", "größe", "#!", "*", "-x;y&", "")


def script(recipe: Path, *arguments: str) -> str:
    resources = Resources(
        nodes=1,
        gpus_per_node=0,
        processes_per_node=2,
        cpus_per_process=3,
        sbatch={"time": "10", "account": "lab", "mem": "240G", "qos": ""},
        config=config_file("cpu"),
    )
    return job_script(recipe, list(arguments), resources)


def test_arguments_reach_the_job_as_they_were_given(tmp_path: Path) -> None:
    recipe = tmp_path / "my $recipe's.py"
    text = script(recipe, *ODD)
    lines = [line for line in text.splitlines() if line.startswith(("set -- ", "export CONFIG=", "export PYTHON="))]
    told = subprocess.run(
        ["bash", "-c", "\n".join([*lines, 'printf "%s\\0" "$@"'])], capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\0")[:-1] == [str(recipe), *ODD]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("partition", "gpu --gpus=8"), ("partition", 'a"b'), ("partition", "a#b"), ("time", "1 day"), ("time", "1\\")],
)
def test_what_sbatch_would_split_is_one_of_the_problems(option: str, value: str, dataset: Dataset) -> None:
    job = [str(SCRIPT), "--gpus-per-node", "1", "--batch", "7", f"--{option}", value]
    with pytest.raises(BadRequest) as caught:
        call("slurm", [*job, "--data", str(dataset.folder), "--output", "/proc/nowhere"])
    assert {option, "batch", "output"} <= {problem.field for problem in caught.value.problems}


def test_a_line_break_in_an_option_writes_no_line_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "sbatch", lambda *_: pytest.fail("it was handed to sbatch"))
    with pytest.raises(BadRequest, match=r"--partition 'a.*' holds a control character"):
        call("slurm", [str(SCRIPT), "--partition", "a\n#SBATCH --wrap=id"])


@pytest.mark.parametrize("option", ["nodes", "gpus-per-node", "processes-per-node"])
def test_less_than_nothing_is_said_once(option: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        call("slurm", [str(SCRIPT), f"--{option}", "-1", "--data", str(dataset.folder), "--output", str(tmp_path)])
    assert [problem.sentence for problem in caught.value.problems if option in problem.sentence] == [
        f"--{option} is -1; it must be at least {int(option == 'nodes')}."
    ]


def test_the_batch_scripts_start_the_python_that_they_are_given(tmp_path: Path) -> None:
    """Each says PYTHON, and none takes what the shell's PATH has."""
    said = tmp_path / "said"
    for name in ("srun", "scontrol", "scancel"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {said}\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "/of/my/own/python", "SLURM_CPUS_PER_TASK": "1"}
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    for name, verb in (("shards", "shards build"), ("teach", "teach")):
        subprocess.run(["bash", str(ROOT / f"slurm/{name}.sbatch"), "a b"], env=environment, check=True)
        assert f"srun --cpus-per-task=1 /of/my/own/python -P -m launch.cli {verb} a b" in said.read_text()
        assert "--part 2 --parts 4" in said.read_text().splitlines()[-1]


@pytest.mark.dist
@pytest.mark.parametrize("name", ["shards", "teach", "train"])
def test_a_folder_of_the_same_name_where_a_job_starts_is_not_taken_for_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "srun").write_text('#!/bin/bash\nshift; [[ $* = *launch.cli* ]] && exec "$@" || echo "$CONFIG"\n')
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho n0 NodeAddr=10.0.0.1\n")
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": sys.executable}
    environment |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "0"}
    environment |= {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    environment["SLURM_JOB_CPUS_PER_NODE"] = "2"
    command = ["bash", str(ROOT / f"slurm/{name}.sbatch"), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (str(ROOT / "launch/configs") if name == "train" else "usage: vitrail") in done.stdout


def test_a_job_whose_python_has_no_vitrail_says_so_and_is_tried_once(tmp_path: Path) -> None:
    said = tmp_path / "said"
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/bash\necho {name} >> {said}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "/no/python", "SLURM_JOB_NODELIST": "n0"}
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/train.sbatch"), "recipe.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "train.sbatch: /no/python does not find Vitrail; activate its environment" in done.stdout
    assert "srun" not in said.read_text()


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (1, 4), (126, 1), (127, 1)])
def test_only_what_may_go_better_is_tried_again(code: int, attempts: int, tmp_path: Path) -> None:
    said = tmp_path / "said"
    (tmp_path / "srun").write_text(f"#!/bin/bash\necho srun >> {said}\nexit {code}\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho n0 NodeAddr=10.0.0.1\n")
    (tmp_path / "python").write_text("#!/bin/bash\necho /site/launch\n")
    for name in ("srun", "scontrol", "python"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n0", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_CPUS_PER_NODE": "2"}
    command = ["bash", str(ROOT / "slurm/train.sbatch"), "recipe.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said.read_text().count("srun") == attempts


def test_every_value_of_a_script_is_quoted() -> None:
    text = script(Path("/a b/recipe.py"), "--data", "x y")
    assert f"set -- {shlex.quote('/a b/recipe.py')} --data 'x y'" in text
    assert "#SBATCH --time=10\n" in text
    assert "--partition" not in text
