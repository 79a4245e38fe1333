"""Vitrail as a wheel: from an empty folder it does what it does from the clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.files import read_json
from tests.running import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(600)]

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
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all is done in."""
    return tmp_path_factory.mktemp("empty")


def python(site: Path, folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel, from a folder."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def digits(site: Path, empty: Path) -> str:
    """A data set that the wheel built."""
    python(site, empty, "-m", "launch.cli", "shards", "build", "digits", "digits", "--processes", "1")
    return "digits"


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
    assert f"export CONFIG={site}/launch/configs/ddp_multinode.yaml\n" in said.stdout
    assert f"export PYTHON={sys.executable}\n" in said.stdout
    assert f"set -- {site}/recipes/deit_digits.py --data digits --output out\n" in said.stdout
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
