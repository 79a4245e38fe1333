"""Rows of a frozen prefix on the disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.rows import ROWS, Rows
from pipeline.errors import StoreError

SHAPE = (3, 2)
SAMPLES = np.array([4, 0, 7])
VALUES = np.arange(18, dtype=np.float32).reshape(3, *SHAPE) / 7


def some(folder: Path) -> Rows:
    rows = Rows(folder / "rows", SHAPE)
    rows.begin(9, {"precision": "fp32"})
    return rows


def test_rows_come_back_and_missing_ones_are_known(tmp_path: Path) -> None:
    rows = some(tmp_path)
    assert not rows.read(SAMPLES)[1].any()
    rows.write(SAMPLES, VALUES)
    for reader in (rows, some(tmp_path)):  # begun again, what is there stays
        found, there = reader.read(np.array([7, 5, 4, 8]))
        assert there.tolist() == [True, False, True, False]
        np.testing.assert_array_equal(found[[0, 2]], VALUES[[2, 0]])
    assert rows.count == 3
    assert [path.stat().st_size for path in (tmp_path / "rows/rows.bin", tmp_path / "rows/rows.crc")] == [9 * 24, 9 * 4]


def test_a_row_of_zeros_is_one(tmp_path: Path) -> None:
    rows = some(tmp_path)
    rows.write(np.array([2]), np.zeros((1, *SHAPE), np.float32))
    assert rows.read(np.array([2, 3]))[1].tolist() == [True, False]


@pytest.mark.parametrize("file", ["rows.bin", "rows.crc"])
def test_a_row_that_is_not_as_it_was_written_is_missing(tmp_path: Path, file: str) -> None:
    rows = some(tmp_path)
    rows.write(SAMPLES, VALUES)
    content = bytearray((rows.folder / file).read_bytes())
    content[4 * len(content) // 9] ^= 1  # of sample 4
    (rows.folder / file).write_bytes(content)
    assert rows.read(SAMPLES)[1].tolist() == [False, True, True]
    rows.write(SAMPLES[:1], VALUES[:1])
    assert rows.read(SAMPLES)[1].all()


@pytest.mark.parametrize("file", ["rows.bin", "rows.crc"])
def test_rows_behind_the_end_of_a_torn_file_are_missing(tmp_path: Path, file: str) -> None:
    rows = some(tmp_path)
    rows.write(SAMPLES, VALUES)
    os.truncate(rows.folder / file, (rows.folder / file).stat().st_size * 7 // 9 + 1)
    assert rows.read(SAMPLES)[1].tolist() == [True, True, False]
    assert some(tmp_path).read(SAMPLES)[1].tolist() == [True, True, False]


def test_a_row_whose_checksum_a_kill_kept_from_being_written_is_missing(tmp_path: Path) -> None:
    rows = some(tmp_path)
    marks = (rows.folder / "rows.crc").read_bytes()
    rows.write(SAMPLES, VALUES)
    (rows.folder / "rows.crc").write_bytes(marks)
    assert not rows.read(SAMPLES)[1].any()


def test_rows_of_something_else_are_refused_with_what_differs(tmp_path: Path) -> None:
    rows = some(tmp_path)
    with pytest.raises(StoreError, match=r"holds outputs for precision = fp32, the request says bf16 \(--precision\)"):
        rows.begin(9, {"precision": "bf16"})
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").touch()
    with pytest.raises(StoreError, match="neither empty nor a store of outputs of a frozen prefix"):
        ROWS.differences(tmp_path / "letters", {})


def test_a_full_disk_and_files_that_are_gone_are_told_with_the_folder(tmp_path: Path) -> None:
    rows = some(tmp_path)
    (rows.folder / "rows.bin").unlink()
    with pytest.raises(StoreError, match=r"rows: cannot be written \(No such file"):
        rows.write(SAMPLES, VALUES)
    (rows.folder / "rows.bin").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"rows: cannot be written \(No space left .* the rows that are there stay"):
        rows.write(SAMPLES, VALUES)
    (rows.folder / "rows.crc").unlink()
    with pytest.raises(StoreError, match=r"cannot be read \(No such file .* go on without --finetune.cache"):
        rows.read(SAMPLES)


def test_the_room_that_is_still_needed_is_known(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows", (4096,))
    assert rows.missing_bytes(9) == 9 * 4 * 4096
    rows.begin(9, {})
    assert rows.missing_bytes(9) == 9 * 4 * 4096  # holes take none
    rows.write(np.arange(9), np.ones((9, 4096), np.float32))
    assert rows.missing_bytes(9) < 4 * 4096
    assert rows.said(9) == f"{tmp_path}/rows: 16.4 kB an image, 0.1 MB of all"
