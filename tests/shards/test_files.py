"""Our files: what is damaged, and what the system does not give."""

import errno
from pathlib import Path
from typing import Any

import pytest

from shards.dataset import read_dataset
from shards.errors import DamagedFile, ShardError
from shards.files import read_json, read_json_lines
from shards.indexing import index_dataset
from shards.synthetic import make_dataset

FAILS = "/proc/self/mem"  # a regular file whose first byte cannot be read: EIO


def test_what_has_another_form_is_damaged_and_what_is_not_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{")
    with pytest.raises(DamagedFile, match=r"a\.json: torn or altered"):
        read_json(tmp_path / "a.json", dict[str, Any])
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json", dict[str, Any])


@pytest.mark.parametrize("read", [read_json, read_json_lines])
def test_a_disk_that_fails_damages_no_file_and_is_named(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.json"
    path.symlink_to(FAILS)
    with pytest.raises(OSError, match=str(path)) as caught:
        read(path, dict[str, Any])
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("name", ["dataset.json", "train/index.json"])
def test_a_data_set_that_the_disk_does_not_give_is_not_to_be_made_anew(tmp_path: Path, name: str) -> None:
    path = make_dataset(tmp_path, classes=2, size=8, samples={"train": 4}).folder / name
    path.unlink()
    path.symlink_to(FAILS)
    with pytest.raises(ShardError, match=rf"{path}: cannot be read \(Input/output error\)\. See to the disk"):
        read_dataset(tmp_path)


def test_names_of_classes_that_the_disk_does_not_give_are_not_dropped(tmp_path: Path) -> None:
    make_dataset(tmp_path, classes=2, size=8, samples={"train": 4})
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "dataset.json").symlink_to(FAILS)
    with pytest.raises(ShardError, match=r"dataset\.json: cannot be read"):
        index_dataset(tmp_path, 1)
    assert (tmp_path / "dataset.json").is_symlink()
