"""A recipe's script from its command line to its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import run
from tests.running import ENVIRONMENT

BASE = """
from dataclasses import replace
from pipeline.run import main
from recipes.deit_digits import RECIPE as BASE
"""


def python(path: Path, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script as a user does."""
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=path.parent)


@pytest.mark.dist
def test_a_recipe_that_is_handed_to_nobody_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"{BASE}RECIPE = replace(BASE, seed=1)\nprint('printed', end='')\n")
    monkeypatch.setitem(ENVIRONMENT, "VITRAIL_EXIT_CODE", str(tmp_path / "code"))
    done = python(path, "--data", "out")
    assert done.returncode == 2
    assert (tmp_path / "code").read_text() == "2\n"
    assert done.stdout == "printed"
    assert "mine.py: defines RECIPE and does not run it" in done.stderr
    assert 'if __name__ == "__main__":\n    main(RECIPE)' in done.stderr


@pytest.mark.dist
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("from recipes.deit_digits import RECIPE\nprint(RECIPE.seed)\n", 0),  # looks at one
        (f"{BASE}RECIPE = replace(BASE, sed=1)\n", 1),
        (f"{BASE}RECIPE = BASE\nRECIPE = replace(BASE, seed=1)\nraise RuntimeError\n", 1),
        (f"import sys\n{BASE}RECIPE = replace(BASE, seed=1)\nsys.exit('no GPU here')\nmain(RECIPE)\n", 1),
        (f"{BASE}RECIPE = replace(BASE, seed=1)\nraise SystemExit(0)\n", 0),
    ],
)
def test_scripts_that_use_recipes_otherwise_end_as_they_do(text: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    done = python(path)
    assert done.returncode == code
    assert "does not run it" not in done.stderr


@pytest.mark.parametrize(("process", "left"), [("0", "75\n"), ("1", "")])
def test_process_0_leaves_its_code_where_the_environment_says(
    process: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").touch()
    monkeypatch.setenv("VITRAIL_EXIT_CODE", str(tmp_path / "code"))
    monkeypatch.setenv("RANK", process)
    monkeypatch.setattr(run, "active_children", list)  # of other tests, as may be a group
    monkeypatch.setattr(run.torch.distributed, "is_initialized", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run.end(75)
    assert ended.value.code == 75
    assert (tmp_path / "code").read_text() == left
