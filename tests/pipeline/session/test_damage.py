"""Small damage in a run's folder or data: what is set aside, what is refused, and what the run says of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TrainingError
from pipeline.folder import RunFolder
from shards.dataset import HEAD, Dataset, read_dataset
from shards.errors import BadRequest
from shards.indexing import index_dataset
from tests.running import metrics, summary, train_here
from tests.tiny import HERE

STEPS = 4
SAVING = replace(HERE, checkpoint=replace(HERE.checkpoint, every_steps=2, keep=2))


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after some steps, with all that a run's folder can hold."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_here(dataset, folder, SAVING, max_steps=STEPS, trace_samples=True)
    RunFolder(folder).quarantine.write_text("")
    RunFolder(folder).rehearsal.write_text("{}")
    return folder


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train_here(dataset, folder, SAVING, max_steps=2 * STEPS)
    return summary(folder)


def add(name: str, line: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        path = folder / name
        path.write_bytes(line + (path.read_bytes() if path.exists() else b""))

    return do


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


NEWEST = f"checkpoints/step-{STEPS:08d}"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (add("metrics.jsonl", b'{"kind": "tr\xff\n'), "metrics.jsonl: 1 lines cannot be read; set aside"),
        (add("metrics.jsonl", b"12\n"), "set aside in metrics.jsonl.damaged"),
        (add("metrics.jsonl", b'{"kind": "train"}\n'), "set aside"),
        (add("metrics.jsonl", b"[" * 50_000 + b"\n"), "set aside"),
        (add("quarantine.jsonl", b'{"split": "train"}\n'), "quarantine.jsonl: 1 lines"),
        (add("sessions.jsonl", b"[]\n"), "sessions.jsonl: 1 lines"),
        (add("trace/rank-0.jsonl", b"null\n"), "rank-0.jsonl: 1 lines"),
        (put("summary.json", b'{"steps": 4, "to'), "summary.json: torn or altered"),
        (put("summary.json", b"[]"), "Set aside as summary.json.damaged"),
        (put("recipe.json", b"[1]"), "recipe.json: torn or altered"),
        (put("rehearsal.json", b'{"speed": 1}'), "rehearsal.json: torn or altered"),
        (put(f"{NEWEST}/state.json", b"[]"), "state.json: torn or altered"),
        (put(f"{NEWEST}/state.json", b'{"format_version": 3}'), "Taking the checkpoint before it"),
        (put(f"{NEWEST}/model.safetensors", b"x"), "Taking the checkpoint before it"),
        (put(".metrics.jsonl.host.1.tmp", b"half"), ""),
    ],
)
def test_what_cannot_be_read_is_set_aside_and_the_run_ends_as_unbroken(
    stopped: Path,
    unbroken: dict[str, Any],
    dataset: Dataset,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    damage(folder)
    train_here(dataset, folder, SAVING, max_steps=2 * STEPS)
    assert words in capsys.readouterr().out
    assert summary(folder)["weights_sha256"] == unbroken["weights_sha256"]
    steps = [line["step"] for line in metrics(folder, "train")]
    assert steps == sorted(set(steps))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "sessions.jsonl"])
def test_what_the_disk_does_not_give_is_not_set_aside(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/proc/self/mem")  # a regular file whose first byte cannot be read
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path / name}'"):
        RunFolder(tmp_path).mend(print)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def copied(dataset: Dataset, folder: Path) -> Path:
    shutil.copytree(dataset.folder, folder)
    return folder


def test_other_names_of_the_classes_are_another_run(stopped: Path, dataset: Dataset, tmp_path: Path) -> None:
    data = copied(dataset, tmp_path / "data")
    head = json.loads((data / HEAD).read_text())
    (data / HEAD).write_text(json.dumps(head | {"classes": head["classes"][::-1]}))
    shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(BadRequest, match="names of the classes"):
        train_here(read_dataset(data), tmp_path / "run", SAVING, max_steps=2 * STEPS)


def test_shards_that_are_missing_are_all_said_at_the_start(dataset: Dataset, tmp_path: Path) -> None:
    data = copied(dataset, tmp_path / "data")
    tars = sorted((data / "train").glob("*.tar"))
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:700])
    with pytest.raises(BadRequest) as caught:
        train_here(read_dataset(data), tmp_path / "run")
    assert f"{tars[0]}: missing" in str(caught.value)
    assert f"{tars[1]}: 700 bytes, the index says" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_of_nothing_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    data = copied(dataset, tmp_path / "data")
    split = dataset.evaluation_split()
    assert split
    index = dataset.splits[split]
    for number, shard in enumerate(index.shards):
        with (data / index.folder.name / shard.name).open("r+b") as file:
            for sample in range(index.starts[number], index.starts[number + 1]):
                file.seek(int(index.rows["offset"][sample]))
                file.write(b"\0" * int(index.rows["length"][sample]))
    with pytest.raises(TrainingError, match=f"none of the {len(index)} samples of {index.folder.name} can be used"):
        train_here(index_dataset(data, 1), tmp_path / "run", max_steps=2)
    assert RunFolder(tmp_path / "run").quarantine.exists()


def test_the_budget_alone_decides_how_many_in_a_row_may_be_unusable(dataset: Dataset, tmp_path: Path) -> None:
    data = copied(dataset, tmp_path / "data")
    index = dataset.splits["train"]
    for number, shard in enumerate(index.shards):
        with (data / "train" / shard.name).open("r+b") as file:
            for sample in range(index.starts[number], index.starts[number + 1]):
                if sample < len(index) * 0.6:
                    file.seek(int(index.rows["offset"][sample]))
                    file.write(b"\0\0\0\0")
    damaged = index_dataset(data, 1)

    def tolerant(share: float) -> Any:
        return replace(HERE, data=replace(HERE.data, max_bad=share, epoch="images"))

    assert train_here(damaged, tmp_path / "allowed", tolerant(0.7), max_steps=2) == 0
    with pytest.raises(TrainingError, match=r"more than --data\.max-bad 0\.1 allows"):
        train_here(damaged, tmp_path / "refused", tolerant(0.1), max_steps=4)
