"""The same hosting gives the same bits, and a run says so where it does not."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Compute
from pipeline.determinism import WORKSPACE, determinism_problems, promise, remedy
from pipeline.folder import RunFolder
from shards.dataset import Dataset
from shards.files import read_json_lines
from tests.running import SCRIPT, run, summary, train_here
from tests.tiny import HERE

CUDA = torch.device("cuda")
LOOSE = Compute(deterministic=False)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(WORKSPACE, "")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("said", "wrong"), [("", False), (":4096:8", False), (":16:8", False), (":0:0", True)])
def test_a_workspace_with_which_cublas_is_not_deterministic_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: str, wrong: bool
) -> None:
    monkeypatch.setenv(WORKSPACE, said)
    found = list(determinism_problems(Compute(), CUDA))
    assert [problem.field for problem in found] == ["compute.deterministic"] * wrong
    assert all(f"unset {WORKSPACE}" in problem.sentence for problem in found)
    assert not list(determinism_problems(LOOSE, CUDA))
    assert not list(determinism_problems(Compute(), torch.device("cpu")))


def test_torch_is_asked_for_it_and_what_the_user_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    promise(LOOSE)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not os.environ[WORKSPACE]
    promise(Compute())
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":16:8")
    promise(Compute())
    assert os.environ[WORKSPACE] == ":16:8"


def test_an_operation_that_gives_other_bits_names_the_field() -> None:
    promise(Compute())
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert remedy(raised.value).startswith("put_, which this network needs")
    assert "--compute.no-deterministic" in remedy(raised.value)
    assert not remedy(RuntimeError("out of memory"))
    assert not remedy(ValueError("put_ does not have a deterministic implementation"))


def test_a_run_without_the_promise_says_so(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = []
    for name, compute in (("kept", Compute()), ("off", LOOSE)):
        train_here(dataset, tmp_path / name, replace(HERE, compute=compute), max_steps=2)
        says = "need not be equal bit for bit" in capsys.readouterr().out
        (session,) = read_json_lines(RunFolder(tmp_path / name).sessions, dict[str, Any]).good
        assert (says, session["deterministic"]) == (not compute.deterministic, compute.deterministic)
        hashes.append(summary(tmp_path / name)["weights_sha256"])
    assert hashes[0] == hashes[1]  # a processor keeps it in any case


@pytest.mark.dist
def test_hiding_the_gpus_of_a_machine_without_any_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("it has one")
    for name, env in (("usual", {}), ("hidden", {"CUDA_VISIBLE_DEVICES": ""})):
        run(SCRIPT, "--data", dataset.folder, "--output", tmp_path / name, "--max-steps", 2, env=env)
    assert summary(tmp_path / "usual")["weights_sha256"] == summary(tmp_path / "hidden")["weights_sha256"]
