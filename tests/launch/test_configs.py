"""The configurations and the README's commands leave `accelerate launch` nothing to take by default and speak of."""

import re
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch

from tests.running import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^accelerate launch (.*?)(?:\s+#.*)?$", README, re.MULTILINE)


def warnings_of(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return what the launcher says of the values that it takes by default, where no file of a person's says any."""
    said: list[str] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a CPU's threads: their best number is the machine's to say
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(launch.logger, "warning", lambda text, *_: said.append(text))
    monkeypatch.chdir(ROOT)
    options: Any = launch.launch_command_parser().parse_args(words)
    launch._validate_launch_command(options)
    return said


def test_the_launcher_speaks_of_defaults_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "--dynamo_backend" in "".join(warnings_of(["recipes/deit_digits.py"], monkeypatch, tmp_path))


@pytest.mark.parametrize("config", sorted(ROOT.glob("launch/configs/*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_says_every_value(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert warnings_of(["--config_file", str(config), "recipes/deit_digits.py"], monkeypatch, tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_says_every_value(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert warnings_of(command.split(), monkeypatch, tmp_path) == []


def test_the_readme_has_such_commands() -> None:
    assert len(COMMANDS) >= 4
