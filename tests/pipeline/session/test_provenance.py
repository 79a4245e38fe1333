"""recipe.json of a run's beginning, and one line a session in sessions.jsonl."""

import json
import os
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.data.version import views_version
from pipeline.folder import RunFolder
from pipeline.session import provenance
from pipeline.session.events import Events
from pipeline.session.session import Parts
from shards.dataset import Dataset
from shards.files import read_json, read_json_lines
from tests.running import PROGRAMS, run, train_here
from tests.tiny import HERE, STEPS

pytestmark = pytest.mark.slow  # whole runs


def sessions(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(RunFolder(folder).sessions, dict[str, Any]).good


def spans(folder: Path) -> list[tuple[int, int, str]]:
    """Return from and to which step each session went, and how it ended."""
    return [(line["from_step"], line["to_step"], line["ended"]) for line in sessions(folder)]


class Stopping(Events):
    """Is asked to stop in step 3, counted from 1."""

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        if step + 1 == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().after_step(step, losses, agreed, norm)


class Failing(Events):
    """Fails after step 5, counted from 1."""

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        stopping = super().after_step(step, losses, agreed, norm)
        if step + 1 == 5:
            raise ArithmeticError("the sum is 3\nwhich nobody expected")
        return stopping


def test_each_session_says_from_and_to_which_step_it_went_and_how_it_ended(dataset: Dataset, tmp_path: Path) -> None:
    assert train_here(dataset, tmp_path, parts=Parts(events=Stopping)) == 75
    with pytest.raises(ArithmeticError):
        train_here(dataset, tmp_path, parts=Parts(events=Failing))
    assert train_here(dataset, tmp_path, max_steps=6) == 0
    assert train_here(dataset, tmp_path) == 0
    assert spans(tmp_path) == [
        (0, 3, "stopped on request"),
        (3, 5, "failed: ArithmeticError: the sum is 3"),
        (4, 6, "done"),
        (6, STEPS, "done"),
    ]


def test_a_session_is_not_ended_while_it_runs(dataset: Dataset, tmp_path: Path) -> None:
    seen = []

    class Looking(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            seen.append(spans(tmp_path))
            return super().after_step(step, losses, agreed, norm)

    assert train_here(dataset, tmp_path, parts=Parts(events=Looking), max_steps=1) == 0
    assert seen == [[(0, None, None)]]


@pytest.mark.dist
def test_a_session_that_was_killed_is_known_as_such_to_the_next_one(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--data", dataset.folder, "--output", folder)
    run(PROGRAMS / "killed.py", *options, env={"KILL": "step 5"}, code=-signal.SIGKILL)
    assert spans(folder) == [(0, None, None)]
    saved = checkpoint.step_of(checkpoint.checkpoints(folder / "checkpoints")[0])
    assert train_here(dataset, folder, max_steps=8) == 0
    assert spans(folder) == [(0, 5, "killed"), (saved, 8, "done")]


def test_a_session_says_what_computed_it(dataset: Dataset, tmp_path: Path) -> None:
    assert train_here(dataset, tmp_path, max_steps=1) == 0
    (session,) = sessions(tmp_path)
    assert session["versions"] == provenance.versions()
    assert session["git_commit"] == provenance.git_commit()
    hosted = {name: session[name] for name in ("processes", "virtual_ranks", "engine", "precision", "workers")}
    assert hosted == {"processes": 1, "virtual_ranks": [3], "engine": "ddp", "precision": "fp32", "workers": 0}
    assert session["micro_batch"] == 4
    assert set(session["machine"]) == {"host", "system", "cores", "processor", "device"}
    assert session["changed"] == {}
    assert {"opencv-python-headless", "simplejpeg"} < set(session["versions"])


def test_a_commit_whose_code_was_changed_is_called_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for folder in (*provenance.CODE, "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("1")
    for command in (["init"], ["add", "."], ["commit", "--message", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = provenance.git_commit()
    assert commit
    assert len(commit) == 40
    (tmp_path / "docs" / "a.py").write_text("2")
    assert provenance.git_commit() == commit
    (tmp_path / "pipeline" / "a.py").write_text("2")
    assert provenance.git_commit() == f"{commit}-dirty"


def test_a_session_on_a_processor_that_makes_other_pixels_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for capability, said in (("AVX2", False), ("DEFAULT", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert train_here(dataset, tmp_path / capability, max_steps=1) == 0
        assert ("processor computes without AVX2 (DEFAULT)" in capsys.readouterr().out) == said
        (session,) = sessions(tmp_path / capability)
        assert session["machine"]["processor"] == capability


def test_repeating_a_finished_command_changes_neither_record(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(dataset, tmp_path, max_steps=2) == 0
    folder = RunFolder(tmp_path)
    kept = (folder.recipe, folder.sessions, folder.summary, folder.metrics)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    monkeypatch.setattr(provenance, "git_commit", lambda: "another commit")
    capsys.readouterr()
    assert train_here(dataset, tmp_path, max_steps=2) == 0
    assert "all 2 steps are done" in capsys.readouterr().out
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before


def test_recipe_json_stays_that_of_the_beginning_and_a_session_names_what_it_changed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_here(dataset, tmp_path, max_steps=2) == 0
    path = RunFolder(tmp_path).recipe
    before = path.read_bytes()
    began = read_json(path, dict[str, Any])
    assert began["recipe"] == json.loads(json.dumps(asdict(HERE)))
    assert began["fingerprints"]["version of views"] == views_version()
    assert began["fingerprints"]["training data"] == dataset.splits["train"].fingerprint
    assert began["versions"] == provenance.versions()
    monkeypatch.setattr(provenance, "git_commit", lambda: "another commit")
    changed = replace(HERE, name="renamed", eval=replace(HERE.eval, batch=4), micro_batch=2)
    assert train_here(dataset, tmp_path, changed, max_steps=4) == 0
    assert path.read_bytes() == before
    assert sessions(tmp_path)[1]["changed"] == {"eval.batch": 4, "micro_batch": 2, "name": "renamed"}
    assert sessions(tmp_path)[1]["git_commit"] == "another commit"
    assert train_here(dataset, tmp_path, max_steps=6) == 0
    assert sessions(tmp_path)[2]["changed"] == {}


def test_a_run_that_begins_anew_has_a_recipe_json_of_its_new_beginning(dataset: Dataset, tmp_path: Path) -> None:
    class FailingAtOnce(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train_here(dataset, tmp_path, parts=Parts(events=FailingAtOnce))
    other = replace(HERE, optim=replace(HERE.optim, lr=2e-3))
    assert train_here(dataset, tmp_path, other, max_steps=2) == 0  # nothing was saved that it could contradict
    assert read_json(RunFolder(tmp_path).recipe, dict[str, Any])["recipe"]["optim"]["lr"] == 2e-3
    assert spans(tmp_path) == [(0, 0, "failed: ArithmeticError"), (0, 2, "done")]
