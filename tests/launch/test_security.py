"""Nothing that a data set or a file of weights brings is executed, whatever is done with it.

Beside every image of the shards lie pickles that make a file when they are loaded.
"""

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from webdataset.compat import WebDataset

from launch import bench, doctor, drill, slurm
from launch.cli import VERBS, call
from pipeline.config import Distill
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import Dataset, describe, read_dataset, write_dataset
from shards.errors import BadRequest, VitrailError
from shards.index import index_tar, write_index
from tests.running import SCRIPT, train_here
from tests.tiny import HERE

PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "data.pyd", "json.pkl")


@dataclass(frozen=True)
class Trap:
    """A pickle that makes a file when it is loaded."""

    sentinel: Path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.sentinel,)


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentinel") / "executed"


@pytest.fixture(scope="module")
def trapped(dataset: Dataset, sentinel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set whose every sample brings pickles."""
    folder = tmp_path_factory.mktemp("trapped") / "data"
    pickled = pickle.dumps(Trap(sentinel))
    indexes = {}
    for split, index in dataset.splits.items():
        (folder / split).mkdir(parents=True)
        parts = []
        for shard in index.shards:
            path = folder / split / shard.name
            add_pickles(index.folder / shard.name, path, pickled)
            rows = index_tar(path)
            parts.append((describe(path, rows), rows))
        indexes[split] = write_index(folder / split, parts)
    write_dataset(folder, list(dataset.classes), indexes)
    return folder


def add_pickles(source: Path, target: Path, pickled: bytes) -> None:
    """Copy a tar and put pickles beside every image."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
            if member.name.endswith(".cls"):
                for extension in PICKLES:
                    trap = tarfile.TarInfo(f"{member.name.removesuffix('.cls')}.{extension}")
                    trap.size = len(pickled)
                    new.addfile(trap, io.BytesIO(pickled))


@pytest.fixture(autouse=True)
def untouched(sentinel: Path) -> Iterator[None]:
    """Fail where a test left a sentinel."""
    yield
    executed = sentinel.exists()
    sentinel.unlink(missing_ok=True)
    assert not executed, "a pickle of the data set was executed"


class Here(Executor):
    """Does at once, in this process, what a pool would do in others."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, do: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        AcceleratorState._reset_state(reset_partial_state=True)  # each process has one precision
        done: Future[Any] = Future()
        done.set_result(do(*arguments, **options))
        return done


def session(broken: drill.Drill, fault: str, step: int, last_step: int) -> str:
    """Train in this process what a drill would train in others."""
    train_here(read_dataset(Path(broken.job.data)), broken.folder.path, broken.job.recipe, max_steps=last_step)
    return ""


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have long verbs do little, and in this process."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "SETTINGS", {"bf16": bench.SETTINGS["bf16"], "fp32": bench.SETTINGS["fp32"]})
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(drill, "FAULTS", ())
    monkeypatch.setattr(drill, "session", session)
    monkeypatch.setattr(doctor, "all_reduce", lambda *_: doctor.Finding("all-reduce", None, "not tried"))
    monkeypatch.setattr(slurm, "sbatch", lambda script, *_: "not asked")


DATA = ("--data", "{data}", "--data.workers", "0")
OUTPUT = ("--output", "{tmp}/run")
TEACHER = (
    *("--distill.teacher", "resnet20_cifar", "--distill.img-size", "16", "--distill.no-token"),
    *("--distill.weights", "{tmp}/teacher.safetensors", "--distill.store", "{tmp}/store"),
)
RECIPE = str(SCRIPT)

# what each verb is asked to do with the data set
CALLS: dict[str, list[tuple[str, ...]]] = {
    "shards": [("verify", "{data}"), ("show", "{data}"), ("show", "{data}", "--json")],
    "order": [(RECIPE, *DATA, "--json")],
    "preview": [(RECIPE, *DATA, "--output", "{tmp}/views.png")],
    "plan": [(RECIPE, *DATA, "--gpus-per-node", "2")],
    "doctor": [(RECIPE, *DATA, *OUTPUT)],
    "slurm": [(RECIPE, *DATA, *OUTPUT, "--gpus-per-node", "2")],
}
SLOW_CALLS: dict[str, list[tuple[str, ...]]] = {
    "teach": [(RECIPE, *DATA, *TEACHER, "--epochs", "1")],
    "ladder": [(RECIPE, *DATA, *OUTPUT, "--epochs", "1", "--rungs", "linear")],
    "drill": [(RECIPE, *DATA, "--processes", "1")],
    "bench": [("step", RECIPE, *DATA)],
}
CALLS_WITH_PROCESSES: dict[str, list[tuple[str, ...]]] = {
    "shards": [("index", "{data}", "--processes", "1")],
    "bench": [("loader", RECIPE, *DATA), ("recipe", RECIPE, *DATA)],
}
CASES = [
    pytest.param(name, arguments, id=" ".join([name, *arguments[:1]]).replace(RECIPE, "RECIPE"), marks=marks)
    for calls, marks in ((CALLS, ()), (SLOW_CALLS, (pytest.mark.slow,)), (CALLS_WITH_PROCESSES, (pytest.mark.dist,)))
    for name, of_verb in calls.items()
    for arguments in of_verb
]


def test_every_verb_is_tried() -> None:
    assert {*CALLS, *SLOW_CALLS, *CALLS_WITH_PROCESSES} == set(VERBS), "say in CALLS what a new verb is asked"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the collector
def test_the_trap_works(trapped: Path, sentinel: Path) -> None:
    pickle.loads(pickle.dumps(Trap(sentinel)))
    assert sentinel.exists()
    sentinel.unlink()
    # as webdataset's own decoders do
    tars = [str(tar) for tar in (trapped / "train").glob("*.tar")][:1]
    next(iter(WebDataset(tars, shardshuffle=False).decode(only=["pyd"])))
    assert sentinel.exists()
    sentinel.unlink()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm does too
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_verb_executes_nothing_of_a_data_set(
    name: str, arguments: tuple[str, ...], trapped: Path, tmp_path: Path, shortened: None
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    if TEACHER[0] in arguments:
        recipe = replace(HERE, distill=Distill(teacher="resnet20_cifar", img_size=16, token=False))
        write_random_weights(recipe, tmp_path / "teacher.safetensors")
    assert call(name, [argument.format(data=trapped, tmp=tmp_path) for argument in arguments]) == 0


@pytest.mark.slow
def test_a_training_executes_nothing_of_a_data_set(trapped: Path, tmp_path: Path) -> None:
    every_image = replace(HERE, epochs=1, data=replace(HERE.data, epoch="images"))
    assert train_here(read_dataset(trapped), tmp_path / "run", every_image) == 0


@pytest.mark.slow
def test_a_dry_run_executes_nothing_of_a_data_set(trapped: Path, tmp_path: Path) -> None:
    request = Request(recipe=HERE, data=str(trapped), output=str(tmp_path / "run"), dry_run=True)
    assert carry_out(request) == 0


@pytest.mark.parametrize("field", ["model.weights", "distill.weights"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save", "a state dict beside it"])
def test_a_file_of_weights_that_brings_more_is_refused_and_not_executed(
    field: str, kind: str, dataset: Dataset, sentinel: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    trap = Trap(sentinel)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(trap, protocol=2))
    else:
        torch.save(trap if kind == "torch.save" else {"state_dict": {"a": torch.zeros(1)}, "epoch": trap}, path)
    group, name = field.split(".")
    distill = Distill(teacher="resnet20_cifar", img_size=16, token=False) if group == "distill" else Distill()
    recipe = replace(HERE, distill=distill)
    recipe = replace(recipe, **{group: replace(getattr(recipe, group), **{name: str(path)})})
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path / "run", recipe)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert "not a file of weights alone" in problem.sentence
    assert str(path) in problem.sentence


def test_an_index_of_pickled_objects_is_refused_and_not_executed(
    dataset: Dataset, sentinel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    for path in dataset.folder.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(dataset.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy)
    index = folder / "train" / "index.npy"
    index.unlink()
    objects = np.empty(1, dtype=object)
    objects[0] = Trap(sentinel)
    np.save(index, objects, allow_pickle=True)
    with pytest.raises(VitrailError, match="index"):
        read_dataset(folder)
