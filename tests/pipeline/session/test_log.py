"""The log of a run: what a disk refuses names its file, once, and ends nothing else."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from rich.progress import Task

from launch.drill import small_disk
from pipeline.folder import RunFolder
from pipeline.session.log import ImagesPerSecond, Log

SIZE = 64 * 1024


def log_of(folder: RunFolder) -> Log:
    return Log(folder, step=0, last_step=9, process=0, trace=True, quiet=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """The folder of a run on a disk of its own, TensorBoard's on another."""
    folder = RunFolder(tmp_path / "run")
    with ExitStack() as stack:
        for path in (folder.path, folder.tensorboard):
            path.mkdir()
            if not stack.enter_context(small_disk(path, SIZE)):
                pytest.skip("a small disk needs root")
        yield folder


def fill(folder: Path) -> None:
    """Leave nothing of a disk."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def write_metrics(folder: RunFolder, harm: Callable[[Path], None]) -> None:
    with log_of(folder) as log:
        harm(folder.path)
        for step in range(100):  # a page that is begun has room
            log.record("event", step, 0.0, {"event": "x" * 100})


def write_board(folder: RunFolder) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    with log_of(folder) as log:
        fill(folder.tensorboard)
        for step in range(3):
            log.pictures("train/augmented", step, images, ["label"] * 16)
            log.record("train", step, 0.0, {"loss": 1.0})


def test_a_full_disk_under_metrics_is_named(folder: RunFolder) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.jsonl'"):
        write_metrics(folder, fill)


def test_a_full_disk_under_tensorboard_is_named_and_its_thread_prints_nothing(
    folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/tensorboard/run'"):
        write_board(folder)
    assert capfd.readouterr().err == ""


def test_a_folder_that_was_removed_ends_the_run_at_the_next_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with pytest.raises(FileNotFoundError, match=r"gone while the run was writing it: '.*metrics.jsonl'"):
        write_metrics(folder, shutil.rmtree)
    with pytest.raises(FileNotFoundError, match=r"gone .*sessions.jsonl"):
        folder.end_session(1, "failed")


def test_a_progress_bar_says_images_a_second_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with Log(RunFolder(tmp_path), step=0, last_step=9, process=0, trace=False, quiet=False) as log:
        assert log._bar
        log.advance(3, images=12)
        (task,) = log._bar.tasks
        assert (task.completed, task.total, task.fields["images"]) == (3, 9, 12)
    assert "left" in capsys.readouterr().out
    column = ImagesPerSecond()
    assert str(column.render(cast(Task, SimpleNamespace(speed=200.0, fields={"images": 12})))) == "2,400 images/s"
    assert str(column.render(cast(Task, SimpleNamespace(speed=None, fields={"images": 12})))) == ""
