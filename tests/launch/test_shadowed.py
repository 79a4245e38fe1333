"""What has the name of a package of ours, and where Python finds it first."""

import sys
from pathlib import Path

import pytest

from launch import cli
from launch.shadowed import PACKAGES, ROOT, shadowed
from tests.running import vitrail_process


def test_vitrails_own_packages_are_found_as_they_are() -> None:
    assert list(shadowed()) == []
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"launch", "slurm", "tests"} == set(PACKAGES)


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_of_the_same_name_is_named_with_its_file(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["vitrail", "plan", "deit_small"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"{file} stands in for `{name}` of Vitrail, which is {ROOT / name}" in capsys.readouterr().err


def test_a_folder_that_is_no_package_stands_in_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()  # of data, say
    monkeypatch.syspath_prepend(tmp_path)
    for name in PACKAGES:
        monkeypatch.delitem(sys.modules, name)
    assert list(shadowed()) == []


@pytest.mark.dist
def test_the_command_says_so_before_anything_is_imported(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    refused = vitrail_process("plan", "deit_small", code=2, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}).stderr
    assert f"vitrail: {tmp_path}/pipeline/__init__.py stands in for `pipeline` of Vitrail" in refused
