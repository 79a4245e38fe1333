"""`vitrail predict`."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch import predict
from shards.dataset import Dataset
from tests.http_server import serving
from tests.running import vitrail


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three images, one in a folder in it, beside what is none."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "inner/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def predicted(*arguments: Any, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return the answers by image."""
    lines = vitrail("predict", *arguments, code=code).stdout.splitlines()
    return {line["image"]: line["answers"] for line in map(json.loads, lines)}


def test_files_folders_and_patterns_are_answered_with_names_and_probabilities(
    trained: Path, photos: Path, dataset: Dataset
) -> None:
    a, b, c = (str(photos / name) for name in ("a.png", "b.JPG", "inner/c.png"))
    found = predicted(trained, photos, "--top", 4)
    assert list(found) == [a, b, c]
    for answers in found.values():
        assert sorted(one["class"] for one in answers) == sorted(dataset.classes)
        assert sum(one["probability"] for one in answers) == pytest.approx(1, abs=1e-5)
        assert answers[0]["probability"] == max(one["probability"] for one in answers)
        assert all(dataset.classes[one["number"]] == one["class"] for one in answers)
    assert list(predicted(trained, a, photos / "*.JPG", f"{photos}/**/c.png")) == [a, b, c]
    assert len(predicted(trained, a, "--top", 1)[a]) == 1


def test_an_image_is_answered_the_same_in_any_batch_and_beside_loader_processes(trained: Path, photos: Path) -> None:
    together, alone = predicted(trained, photos), predicted(trained, photos, "--eval.batch", 1, "--data.workers", 1)
    assert list(together) == list(alone)
    for name, answers in together.items():
        for one, other in zip(answers, alone[name], strict=True):
            assert one["class"] == other["class"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


def test_what_cannot_be_used_is_named_the_rest_is_done_and_the_exit_code_says_it(trained: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:40])
    (photos / "page.jpg").write_text("<!doctype html>")
    os.mkfifo(photos / "pipe")
    (photos.parent / "empty").mkdir()
    named = (photos, photos / "none.png", photos.parent / "empty", "ftp://a/b.png", photos / "pipe")
    done = vitrail("predict", trained, *named, code=1)
    assert len(done.stdout.splitlines()) == 3
    for part in ("broken.png", "page.jpg': an HTML page", "none.png: no such file", "empty: no images in this folder",
                 "ftp:// is not read", "pipe: no such file"):  # fmt: skip
        assert part in done.stderr
    assert "3 images, " in done.stderr
    assert "images/s; 6 not usable" in done.stderr


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_standard_input_holds_names_or_an_image(trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, f"{photos / 'a.png'}\n\n{photos / 'inner'}\n".encode())
    assert list(predicted(trained, "-")) == [str(photos / "a.png"), str(photos / "inner/c.png")]
    with monkeypatch.context() as small:  # a list may be longer than an image
        small.setattr(predict, "MAX_BYTES", 10)
        given(monkeypatch, f"{photos / 'a.png'}\n{photos / 'inner'}\n".encode())
        assert [asked.name for asked in predict.from_standard_input()] == [f"{photos}/a.png", f"{photos}/inner/c.png"]
    given(monkeypatch, (photos / "a.png").read_bytes())
    assert list(predicted(trained, "-")) == ["standard input"]
    given(monkeypatch, b"")
    assert "no image is named" in vitrail("predict", trained, "-", code=2).stderr


def test_images_behind_urls_are_read(trained: Path, photos: Path) -> None:
    with serving(photos) as server:
        found = predicted(trained, f"{server.url}/a.png", f"{server.url}/none.png", code=1)
    assert found == {f"{server.url}/a.png": predicted(trained, photos / "a.png")[str(photos / "a.png")]}


def test_a_table_is_for_people(trained: Path, photos: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(predict, "is_for_people", lambda: True)
    said = vitrail("predict", trained, photos).stdout
    assert all(name in said for name in ("a.png", "c.png", *dataset.classes))
    assert "%" in said


def test_options_that_are_wrong_are_all_named(trained: Path, tmp_path: Path) -> None:
    said = vitrail("predict", trained, "--top", 0, "--eval.batch", 0, code=2).stderr
    assert "no image is named" in said
    assert "--top is 0; it starts at 1." in said
    assert "--eval.batch is 0" in said


def test_several_processes_are_refused(trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    said = vitrail("predict", trained, photos, code=2).stderr
    assert "works in one process: start it without a launcher" in said


def test_a_run_that_was_moved_is_asked_the_same(trained: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    assert predicted(tmp_path / "moved", photos) == predicted(trained, photos)
