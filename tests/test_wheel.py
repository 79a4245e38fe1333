"""Vitrail as a wheel: from an empty folder it does what it does from the clone."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shards.files import read_json
from tests.running import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TINY = ("--model.img-size", "8", "--model.patch-size", "4", "--model.width", "16", "--model.depth", "1", "--batch", "8")
TINY += ("--optim.warmup-epochs", "0", "--epochs", "1", "--data.workers", "0", "--max-steps", "2")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"  # setuptools builds in the folder that it builds from
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    subprocess.run([*pip, "wheel", *built], check=True)
    (wheel,) = folder.glob("*.whl")
    place = folder / "of a wheel"  # the packages that it needs are those of the tests' environment
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(wheel)], check=True)
    return place


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all is done in, which has a space in its name."""
    folder = tmp_path_factory.mktemp("empty") / "a folder"
    folder.mkdir()
    return folder


def python(
    site: Path, folder: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel, from a folder."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), **(env or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def digits(site: Path, empty: Path) -> str:
    """A data set that the wheel built."""
    python(site, empty, "-m", "launch.cli", "shards", "build", "digits", "digits", "--processes", "1")
    return "./digits"  # `digits` alone is the embedded data set, which is built into the cache


def test_it_brings_recipes_configurations_and_batch_scripts(site: Path) -> None:
    wanted = [
        *ROOT.glob("recipes/*.py"),
        *ROOT.glob("launch/configs/*"),
        *ROOT.glob("launch/*.j2"),
        *ROOT.glob("slurm/*.sbatch"),
    ]
    assert len(wanted) > 40
    for path in wanted:
        assert (site / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert not (site / "tests").exists()


def test_it_plans_and_trains_without_a_commit(site: Path, empty: Path, digits: str) -> None:
    plan = python(site, empty, "-m", "launch.cli", "plan", "deit_digits", "--gpus-per-node", "2", "--json")
    assert '"parameters": 205002' in plan.stdout
    # inside a repository of somebody else's
    subprocess.run(["git", "init", "--quiet"], cwd=empty, check=True)
    python(site, empty, "-m", "recipes.deit_digits", "--data", digits, "--output", "run", *TINY)
    assert read_json(empty / "run" / "recipe.json", dict)["git_commit"] is None
    assert (empty / "run" / "summary.json").exists()


def test_it_writes_a_job_script_from_its_own(site: Path, empty: Path, digits: str) -> None:
    program = empty / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/bash\nbash -n && echo fine >&2\n")
    program.chmod(0o755)
    job = ["--nodes", "1", "--gpus-per-node", "2", "--data", digits, "--output", "out"]
    command = "import os, sys; os.environ['PATH'] = 'bin:' + os.environ['PATH']; from launch.cli import main; main()"
    said = python(site, empty, "-c", command, "slurm", "deit_digits", *job)
    assert f"export CONFIG={shlex.quote(f'{site}/launch/configs/ddp_multinode.yaml')}\n" in said.stdout
    assert f"export PYTHON={sys.executable}\n" in said.stdout
    assert f"set -- {shlex.quote(f'{site}/recipes/deit_digits.py')} --data ./digits --output out\n" in said.stdout
    assert "fine" in said.stderr


def test_its_configurations_find_deepspeeds_settings_from_anywhere(site: Path, empty: Path) -> None:
    told = "import sys; from pathlib import Path; from pipeline.hosting import engine_of_config; "
    told += "print(*(engine_of_config(Path(config)) for config in sys.argv[1:]))"
    configs = [str(site / "launch" / "configs" / f"deepspeed_zero{stage}.yaml") for stage in (1, 2, 3)]
    assert python(site, empty, "-c", told, *configs).stdout == "zero1 zero2 zero3\n"


def test_a_project_with_a_package_of_the_same_name_is_told_which(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("")
    refused = python(site, tmp_path, "-m", "launch.cli", "plan", "deit_digits", code=2).stderr
    assert f"{tmp_path}/pipeline/__init__.py stands in for `pipeline` of Vitrail, which is {site}/pipeline" in refused


def test_recipes_are_launched_by_module_from_anywhere(site: Path, empty: Path, digits: str, tmp_path: Path) -> None:
    """Without git, at home where nothing can be written, in another locale, and out of folders with spaces."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    read_only = "/sys" if os.geteuid() == 0 else str(home)  # where root cannot write either
    bare = {"PATH": str(tmp_path), "HOME": read_only, "LC_ALL": "C", "LANG": "C"}
    one = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", *one, "-m", "recipes.deit_digits"]
    said = python(site, empty, *launch, "--data", digits, "--output", "a run", *TINY, env=bare)
    assert read_json(empty / "a run" / "recipe.json", dict)["git_commit"] is None
    assert (empty / "a run" / "summary.json").exists()
    assert "were not passed to `accelerate launch`" not in said.stderr  # the flags name what it would take by default


def test_it_lists_its_recipes_and_copies_one(site: Path, empty: Path) -> None:
    bare = {"PATH": "", "LC_ALL": "C"}
    shown = json.loads(
        python(site, empty, "-m", "launch.cli", "recipes", "list", "deit_small", "--json", env=bare).stdout
    )
    assert {Path(recipe["file"]).parent for recipe in shown} == {site / "recipes"}
    python(site, empty, "-m", "launch.cli", "recipes", "copy", "deit_digits", "--output", "a copy.py", env=bare)
    assert (empty / "a copy.py").read_bytes() == (site / "recipes" / "deit_digits.py").read_bytes()
    again = python(site, empty, "a copy.py", "--optim.lrr", "1", code=2, env=bare).stderr
    assert "did you mean --optim.lr?" in again
