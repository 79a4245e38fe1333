"""The version of views: held by goldens, and part of what a checkpoint and a store of teacher outputs are bound to."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.job
from pipeline.config import Distill, Recipe
from pipeline.data import policy, version
from pipeline.data.pixels import solarize
from pipeline.data.version import LIBRARIES, VIEWS, processor_note, views_version
from pipeline.fingerprints import VIEWS as VERSION_OF_VIEWS
from pipeline.job import FILLING, LOOKING, TRAINING, resolve
from pipeline.model.build import build_model
from pipeline.request import Request
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests import goldens
from tests.running import train_here
from tests.tiny import HERE

OTHER = "2 (numpy 0.1)"


@pytest.fixture(scope="module")
def found() -> dict[str, goldens.Golden]:
    """The goldens of this installation."""
    return goldens.computed()


def test_views_and_initial_weights_are_those_of_the_goldens(found: dict[str, goldens.Golden]) -> None:
    wrong = goldens.complaint(goldens.read(), found)
    assert not wrong, wrong


@pytest.mark.parametrize("name", policy.OPS)
def test_a_changed_operation_is_noticed_and_the_remedy_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policy.OPS, name, lambda image, _: solarize(image, 3))  # type: ignore[arg-type]
    wrong = goldens.complaint(goldens.read(), goldens.computed(["policy rand", "evaluation view"]))
    assert wrong.startswith("the bytes of policy rand changed.")
    assert "If that is meant, raise VIEWS in pipeline/data/version.py by one and run `python -m tests.goldens`" in wrong


def operations() -> Iterator[Any]:
    """Yield every operation of the other policies: the golden, its table, and the name in it."""
    for name, table, pairs in (
        ("policy auto", policy.AUTO_OPS, policy.AUTO_POLICY),
        ("policy auto_v0", policy.AUTO_V0_OPS, policy.AUTO_V0_POLICY),
    ):
        used = sorted({op for pair in pairs for op, prob, _ in pair if prob})
        yield from (pytest.param(name, table, op, id=f"{name} {op}") for op in used)
    yield from (pytest.param("policy rand_tf", policy.TF_OPS, op, id=f"policy rand_tf {op}") for op in policy.TF_OPS)


@pytest.mark.parametrize(("name", "table", "op"), list(operations()))
def test_a_changed_operation_of_another_policy_is_noticed(
    name: str, table: Mapping[str, policy.Op], op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, op, lambda image, _: solarize(image, 3))  # type: ignore[arg-type]
    assert goldens.moved(goldens.read()["goldens"], goldens.computed([name])) == [name]


def test_an_operation_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {**policy.OPS, "Nothing": lambda image, _: image}
    monkeypatch.setattr(policy, "OPS", more)
    monkeypatch.setattr(policy, "OP_NAMES", tuple(more))
    assert goldens.moved(goldens.read()["goldens"], goldens.computed(["policy rand"])) == ["policy rand"]


def test_a_changed_way_to_decode_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goldens, "decode", lambda content, name: np.zeros((60, 80, 3), np.uint8))
    assert goldens.moved(goldens.read()["goldens"], goldens.computed(["decoded images"])) == ["decoded images"]


def test_another_initialisation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*arguments: object) -> torch.nn.Module:
        net = build_model(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            next(parameter for parameter in net.parameters() if parameter.ndim == 2).mul_(1.01)
        return net

    monkeypatch.setattr(goldens, "build_model", other)
    wrong = goldens.complaint(goldens.read(), goldens.computed(["initial weights"]))
    assert wrong.startswith("the bytes of initial weights changed. If that is meant, raise VIEWS")


def test_the_last_bit_of_a_number_may_differ() -> None:
    assert goldens.moved({"a": [0.25, 3]}, {"a": [0.25 + 1e-6, 3]}) == []
    assert goldens.moved({"a": [0.25, 3]}, {"a": [0.2501, 3]}) == ["a"]
    assert goldens.moved({"a": [0.25, 3]}, {"a": [0.25]}) == ["a"]
    assert goldens.moved({"a": "0f"}, {"a": "0e"}) == ["a"]


def test_a_raised_version_with_the_goldens_of_before_says_what_to_run(found: dict[str, goldens.Golden]) -> None:
    wrong = goldens.complaint(goldens.read(), found, VIEWS + 1)
    assert wrong == (
        f"goldens.json holds the goldens of VIEWS = {VIEWS}, and pipeline/data/version.py says {VIEWS + 1}. "
        "Run `python -m tests.goldens`, and look at what it changes."
    )


def test_a_golden_that_moved_with_a_library_is_no_reason_to_raise_the_version() -> None:
    held = goldens.read()
    held["libraries"]["pillow"] = "1.0"
    held["goldens"]["crop resized"] = "00"
    wrong = goldens.complaint(held, goldens.computed(["crop resized"]))
    assert "the bytes of crop resized changed, with pillow" in wrong
    assert "in place of 1.0. Run `python -m tests.goldens`" in wrong
    assert "raise VIEWS" not in wrong


def test_goldens_that_moved_are_not_overwritten_under_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goldens, "FILE", tmp_path / "goldens.json")
    monkeypatch.setattr(goldens, "computed", lambda: {"a": "0f"})
    goldens.main()
    monkeypatch.setattr(goldens, "computed", lambda: {"a": "0e"})
    with pytest.raises(SystemExit, match="left as it is: the bytes of a changed"):
        goldens.main()
    assert goldens.read()["goldens"] == {"a": "0f"}
    monkeypatch.setattr(goldens, "VIEWS", VIEWS + 1)
    goldens.main()
    assert goldens.read()["goldens"] == {"a": "0e"}
    assert goldens.read()["views"] == VIEWS + 1


def test_the_version_names_the_libraries_that_make_pixels_and_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "numpy": "1.2",
        "opencv-python-headless": "2.3",
        "pillow": "3.4",
        "simplejpeg": "4.5",
        "timm": "5.6",
        "torch": "7.8+cu999",
    }
    assert set(LIBRARIES) == set(installed)
    monkeypatch.setattr(version, "version", installed.__getitem__)
    assert views_version.__wrapped__() == (
        f"{VIEWS} (numpy 1.2, opencv-python-headless 2.3, pillow 3.4, simplejpeg 4.5, timm 5.6, torch 7.8)"
    )


@pytest.mark.parametrize(("capability", "said"), [("AVX2", False), ("AVX512", False), ("DEFAULT", True)])
def test_a_processor_without_avx2_is_told_of_by_what_torch_computes_with(
    capability: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert ("computes without AVX2" in (processor_note())) == said


def test_the_version_is_among_the_fingerprints_of_a_job_and_of_its_store(dataset: Dataset) -> None:
    job = resolve(Request(recipe=HERE, data=str(dataset.folder)), LOOKING)
    assert job.fingerprints[VERSION_OF_VIEWS] == views_version()
    assert job.identity[VERSION_OF_VIEWS] == views_version()
    assert job.store_fingerprint[VERSION_OF_VIEWS] == views_version()


@pytest.mark.slow
def test_a_checkpoint_of_other_views_is_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_here(dataset, tmp_path / "run", max_steps=2) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["identity"]["version of views"] == views_version()
    monkeypatch.setattr(pipeline.job, "views_version", lambda: OTHER)
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path / "run", max_steps=4)
    (problem,) = caught.value.problems
    assert problem.field == "version of views"
    assert problem.sentence.startswith(
        f"the checkpoint of step 2 was made with version of views = {views_version()}, the request says {OTHER}."
    )


def taught(folder: Path) -> Recipe:
    """Return a recipe with a teacher that knows nothing, and a store."""
    distill = Distill(
        teacher="resnet20_cifar",
        img_size=16,
        weights=str(folder / "teacher.safetensors"),
        token=False,
        store=str(folder / "store"),
    )
    recipe = replace(HERE, distill=distill)
    write_random_weights(recipe, folder / "teacher.safetensors")
    return recipe


@pytest.mark.slow
def test_a_store_of_other_views_is_refused(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = taught(tmp_path)
    assert train_here(dataset, tmp_path / "run", recipe, max_steps=1) == 0
    request = Request(recipe=recipe, data=str(dataset.folder), output=str(tmp_path / "another"))
    resolve(request, TRAINING)  # which the same views may read
    monkeypatch.setattr(pipeline.job, "views_version", lambda: OTHER)
    for need in (TRAINING, FILLING):
        with pytest.raises(BadRequest) as caught:
            resolve(request, need)
        (problem,) = caught.value.problems
        assert problem.field == "distill.store"
        assert problem.sentence.startswith(
            f"{tmp_path / 'store'} holds outputs for version of views = {views_version()}, the request says {OTHER}"
        )
