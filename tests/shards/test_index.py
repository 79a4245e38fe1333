"""Tars made elsewhere: what their labels, members and headers may be, and what an index that was altered is worth."""

import errno
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dataset import HEAD, Dataset, read_dataset
from shards.decode import MAX_BYTES
from shards.errors import ShardError
from shards.index import read_index, write_index
from shards.indexing import index_dataset
from shards.labels import Labels
from shards.members import index_tar
from shards.reader import Reader
from shards.verify import verify
from tests.running import vitrail
from tests.tars import Member, pack, picture


def packed(path: Path, *members: Member) -> Path:
    """Make a tar of members, and return the data set's folder."""
    return pack(path, *members).parents[1]


def labelled(*labels: int | str, first: int = 0) -> list[Member]:
    """Return the members of a sample for each label."""
    return [
        member
        for number, label in enumerate(labels, first)
        for member in ((f"{number:04d}.png", picture(number, "PNG")), (f"{number:04d}.cls", str(label).encode()))
    ]


def indexed(tmp_path: Path, *labels: int | str, **options: Any) -> Dataset:
    return index_dataset(packed(tmp_path / "data/train/000000.tar", *labelled(*labels)), 1, **options)


def notes(dataset: Dataset) -> list[str]:
    said: list[str] = json.loads((dataset.folder / HEAD).read_text())["notes"]
    return said


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("-1", "'0001.cls' holds the class number -1; classes are numbered from 0"),
        ("3000000000", "'0001.cls' holds the class number 3000000000, more than 1,000,000"),
        ("2000000000", "more than 1,000,000"),
        ("9" * 5000, "'0001.cls' has 5,000 bytes, more than the 64 of a label"),
        ("3.0", r"no class number but '3\.0'"),
        ("cat", "no class number but 'cat'"),
        ("", "no class number but ''"),
        ("1_0", "no class number but '1_0'"),
        ("\u0663", "no class number but"),
        ('{"label": 0}', "no class number but"),
    ],
)
def test_a_label_that_is_none_is_refused_by_name(tmp_path: Path, label: str, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        indexed(tmp_path, 0, label)


@pytest.mark.parametrize("label", ["1\r\n", "1\n", " 1 ", "\ufeff1", "01"])
def test_a_label_may_have_what_editors_leave(tmp_path: Path, label: str) -> None:
    assert indexed(tmp_path, 0, label).splits["train"].rows["label"].tolist() == [0, 1]


def test_labels_from_1_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="labels go from 1 to 3") as caught:
        indexed(tmp_path, 1, 2, 3)
    assert re.findall("--data.first-label (.*)", str(caught.value)) == ["1", "0"]
    dataset = indexed(tmp_path, 1, 2, 3, labels=Labels(first=1))
    assert dataset.classes == ("1", "2", "3")
    assert dataset.splits["train"].rows["label"].tolist() == [0, 1, 2]
    assert verify(dataset.splits).problems == []
    with pytest.raises(ShardError, match="label of '0000' is 0; labels are numbered from 1"):
        indexed(tmp_path, 0, 1, labels=Labels(first=1))


def test_labels_whose_first_classes_have_no_sample_can_stay_as_they_are(tmp_path: Path) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", *labelled(2, 3))
    vitrail("shards", "index", folder, "--data.first-label", 0, "--processes", 1)
    dataset = read_dataset(folder)
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.splits["train"].rows["label"].tolist() == [2, 3]
    assert "2 numbers below the highest label have no sample, the first is 0." in notes(dataset)
    assert verify(dataset.splits).problems == []


def test_a_gap_in_the_labels_is_said(tmp_path: Path) -> None:
    dataset = indexed(tmp_path, 0, 7, 1000)
    assert len(dataset.classes) == 1001
    assert "998 numbers below the highest label have no sample, the first is 1." in notes(dataset)


@pytest.mark.parametrize("ending", ["JPEG", "PNG", "Jpg", "bmp", "TIF"])
def test_endings_are_known_in_any_case(tmp_path: Path, ending: str) -> None:
    folder = packed(tmp_path / "data/train/a.tar", (f"n01_1.{ending}", picture(0)), ("n01_1.CLS", b"0"))
    assert len(index_dataset(folder, 1).splits["train"]) == 1


@pytest.mark.parametrize(("name", "role"), [("validation", "val"), ("Valid", "val"), ("testing", "test")])
def test_splits_of_other_spellings_are_evaluated_on(tmp_path: Path, name: str, role: str) -> None:
    packed(tmp_path / f"data/{name}/0.tar", *labelled(0, 1, first=10))
    dataset = indexed(tmp_path, 0, 1)
    assert dataset.evaluation_split() == role
    assert dataset.splits[role].folder.name == name


def test_an_empty_tar_is_left_out_aloud_and_an_empty_split_refused(tmp_path: Path) -> None:
    packed(tmp_path / "data/train/empty.tar")
    dataset = indexed(tmp_path, 0, 1)
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert (source["files"], source["taken"], source["not_taken"]) == (2, 1, {"empty": 1})
    assert [shard.name for shard in dataset.splits["train"].shards] == ["000000.tar"]
    packed(tmp_path / "data/val/empty.tar")
    with pytest.raises(ShardError, match="val': no samples in its tars"):
        indexed(tmp_path, 0, 1)


def test_a_key_in_two_shards_is_said(tmp_path: Path) -> None:
    packed(tmp_path / "data/train/000001.tar", *labelled(1, 0))
    assert "2 keys of train occur in more than one shard." in notes(indexed(tmp_path, 0, 1))


@pytest.mark.parametrize("twice", ["0000.png", "0000.cls"])
def test_an_image_or_a_label_that_occurs_twice_is_refused(tmp_path: Path, twice: str) -> None:
    folder = packed(tmp_path / "data/train/a.tar", *labelled(0), (twice, b"1"))
    with pytest.raises(ShardError, match="'0000' has more than one"):
        index_dataset(folder, 1)


def test_class_names_of_tars_that_are_gone_are_dropped_aloud_and_others_kept(tmp_path: Path) -> None:
    dataset = indexed(tmp_path, 0, 1)
    head = json.loads((dataset.folder / HEAD).read_text())
    (dataset.folder / HEAD).write_text(json.dumps(head | {"classes": ["cat", "dog"]}))
    assert index_dataset(dataset.folder, 1).classes == ("cat", "dog")
    other = indexed(tmp_path, 1, 0)
    assert other.classes == ("0", "1")
    assert any("class names that stood here were of other tars" in note for note in notes(other))


def test_class_names_stay_when_a_split_is_added_or_goes(tmp_path: Path) -> None:
    dataset = indexed(tmp_path, 0, 1)
    head = json.loads((dataset.folder / HEAD).read_text())
    (dataset.folder / HEAD).write_text(json.dumps(head | {"classes": ["cat", "dog"]}))
    packed(tmp_path / "data/val/0.tar", *labelled(1, 0, first=10))
    assert index_dataset(dataset.folder, 1).classes == ("cat", "dog")
    shutil.rmtree(tmp_path / "data/train")
    assert index_dataset(dataset.folder, 1).classes == ("cat", "dog")
    packed(tmp_path / "data/val/0.tar", *labelled(0, 1, first=10))
    assert index_dataset(dataset.folder, 1).classes == ("0", "1")


def joined(content: bytes) -> bytes:
    """Join a tar to itself, as cat does."""
    return content + content


def negative(content: bytes) -> bytes:
    """Give the first member a size below zero, in base 256."""
    header = bytearray(content[:512])
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def huge(content: bytes) -> bytes:
    """Give the first member a size of terabytes."""
    header = bytearray(content[:512])
    header[124:136] = b"\x80" + (2**45).to_bytes(11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def long_name(content: bytes) -> bytes:
    """Begin with a GNU long name that claims a gigabyte."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    return info.tobuf(tarfile.GNU_FORMAT)[:512]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (joined, "goes on after the end of the archive"),
        (negative, "damaged|000000.tar"),
        (huge, "cut off|000000.tar"),
        (long_name, "000000.tar"),
        (lambda content: b"\x1f\x8b" + content, "compressed.*gunzip"),
        (lambda content: b"", "000000.tar"),
        (lambda content: content[:1000], "000000.tar"),
    ],
    ids=["joined", "negative size", "huge size", "long name", "gzip", "nothing", "cut"],
)
def test_a_tar_that_is_damaged_or_hostile_is_refused_by_name(
    tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", *labelled(0, 1))
    tar = folder / "train/000000.tar"
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(ShardError, match=words):
        index_dataset(folder, 1)


def test_a_member_with_holes_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", *labelled(0))
    info = tarfile.TarInfo("x.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x.png",
                        "GNU.sparse.realsize": "4096"}  # fmt: skip
    content = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)
    info.size = len(content)
    with tarfile.open(folder / "train/000000.tar", "a") as tar:
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ShardError, match="stored with holes"):
        index_dataset(folder, 1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("0.png", MAX_BYTES + 1, "67,108,865 bytes, more than .* of an image"), ("0.cls", 2**35, "of a label")],
)
def test_a_member_larger_than_a_sample_is_refused_before_it_is_read(
    tmp_path: Path, name: str, size: int, words: str
) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    tar = tmp_path / "data/train/000000.tar"
    tar.parent.mkdir(parents=True)
    with tar.open("wb") as file:  # of holes alone
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(size + 4096)
    with pytest.raises(ShardError, match=f"'{name}' has .*{words}"):
        index_tar(tar)


def test_an_offset_that_begins_again_at_0_cannot_be(tmp_path: Path) -> None:
    folder = indexed(tmp_path, 0, 1).folder / "train"
    index = read_index(folder)
    rows = np.array(index.rows)
    rows["offset"][0] = 2**64 - 1
    with pytest.raises(ShardError, match=r"what it says of 000000\.tar cannot be"):
        write_index(folder, [(index.shards[0], rows)])


def test_a_key_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    folder = indexed(tmp_path, 0, 1).folder / "train"
    index = read_index(folder)
    rows = np.array(index.rows)
    rows["key"][0] = b"caf\xe9"
    assert write_index(folder, [(index.shards[0], rows)]).key(0) == r"caf\xe9"
    (problem,) = verify({"train": read_index(folder)}).problems
    assert r"sample 'caf\\xe9' at byte" in problem


def test_a_key_of_kilobytes_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", (f"{'x' * 600}.png", picture(0)))
    with pytest.raises(ShardError, match="longer than 512 bytes"):
        index_dataset(folder, 1)


@pytest.mark.timeout(300)
def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", *labelled(0, 1))
    os.mkfifo(folder / "train/000001.tar")
    with pytest.raises(ShardError, match=r"000001\.tar: (torn or altered \()?not a regular file"):
        index_dataset(folder, 1)
    (folder / "train/000001.tar").unlink()
    dataset = index_dataset(folder, 1)
    (folder / "train/000000.tar").unlink()
    os.mkfifo(folder / "train/000000.tar")
    with pytest.raises(ShardError, match="not a regular file"):
        Reader(dataset.splits["train"]).read(0)
    assert verify(dataset.splits).problems == [f"{folder}/train/000000.tar: not a regular file."]


def flip_a_label(folder: Path) -> None:
    rows = np.load(folder / "train/index.npy")
    rows["label"][0] ^= 1
    np.save(folder / "train/index.npy", rows)


def change(file: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return what edits a JSON file of a data set."""

    def do(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))

    return do


def with_shard(**fields: Any) -> Callable[[Any], Any]:
    return lambda head: head | {"shards": [head["shards"][0] | fields, *head["shards"][1:]]}


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "damage",
    [
        flip_a_label,
        change("train/index.json", with_shard(samples=1)),
        change("train/index.json", with_shard(name="../../x.tar")),
        change("train/index.json", with_shard(name="/etc/passwd")),
        change("train/index.json", with_shard(samples="2")),
        change("train/index.json", lambda head: []),
        change("train/index.json", lambda head: [1]),
        change("train/index.json", lambda head: {name + "x": value for name, value in head.items()}),
        change("dataset.json", lambda head: []),
        change("dataset.json", lambda head: head | {"classes": 3}),
        change("dataset.json", lambda head: {name + "x": value for name, value in head.items()}),
        change("dataset.json", lambda head: head | {"splits": {"../train": head["splits"]["train"]}}),
        write("train/index.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}"),
        write("train/index.npy", b"\x93NUMPY\x01\x00\xff\xff"),
        write("train/index.npy", b"x"),
        write("dataset.json", b'{"format_version'),
        write("dataset.json", b"[" * 100_000),
    ],
)
def test_an_index_that_was_altered_is_noticed_and_the_remedy_works(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = indexed(tmp_path, 0, 1, 0, 1).folder
    damage(folder)
    with pytest.raises(ShardError, match=f"vitrail shards index {folder}$"):
        read_dataset(folder)
    vitrail("shards", "index", folder, "--processes", 1)
    assert read_dataset(folder).splits["train"].rows["label"].tolist() == [0, 1, 0, 1]


def test_verify_compares_labels_and_decodes(tmp_path: Path) -> None:
    members = labelled(0, 1, 0)
    dataset = index_dataset(packed(tmp_path / "data/train/000000.tar", *members), 1)
    assert verify(dataset.splits).problems == []
    members[3] = ("0001.cls", b"0")
    packed(tmp_path / "data/train/000000.tar", *members)
    (problem,) = verify(dataset.splits).problems
    assert "sample '0001'" in problem
    assert "has label 0, the index says 1. Copy" in problem  # and nothing of what is alike
    members[4] = ("0002.png", b"<html>".ljust(len(members[4][1])))
    again = index_dataset(packed(tmp_path / "data/train/000000.tar", *members), 1)
    assert any("images are an HTML page" in note for note in notes(again))
    (problem,) = verify(again.splits).problems
    assert "sample '0002': an HTML page" in problem


def test_a_shard_is_looked_at_once_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "data/train/000001.tar", *labelled(0, 1, first=10))
    dataset = indexed(tmp_path, 0, 1)
    looked: list[str] = []
    look = os.stat

    def stat(path: str, **options: Any) -> os.stat_result:
        looked.append(Path(path).name)
        if path.endswith("000001.tar"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return look(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        found = dataset.missing_shards()
    assert looked == ["000000.tar", "000001.tar"]
    assert found == [f"{tmp_path}/data/train/000001.tar: cannot be read (Permission denied)."]


def test_verify_says_what_it_found_before_a_tar_went_wrong(tmp_path: Path) -> None:
    members = labelled(0, 1)
    members[0] = ("0000.png", b"<html>".ljust(600))
    folder = packed(tmp_path / "data/train/000000.tar", *members)
    dataset = index_dataset(folder, 1)
    tar = folder / "train/000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-1] + b"x")
    first, second = verify(dataset.splits).problems
    assert "sample '0000': an HTML page" in first
    assert "goes on after the end of the archive" in second


@pytest.mark.parametrize("verb", ["show", "verify", "index"])
def test_a_split_named_for_its_data_set_is_explained(tmp_path: Path, verb: str) -> None:
    folder = indexed(tmp_path, 0, 1).folder
    said = vitrail("shards", verb, folder / "train", code=1).stderr
    assert f"the folder above it: {folder}\n" in said


@pytest.mark.parametrize("name", ["000001.tar.gz", "b.tgz"])
def test_compressed_tars_beside_others_are_named(tmp_path: Path, name: str) -> None:
    folder = packed(tmp_path / "data/train/000000.tar", *labelled(0, 1))
    (folder / "train" / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(ShardError, match=f"{name}.*compressed"):
        index_dataset(folder, 1)


def test_ten_thousand_classes_are_counted_at_once(tmp_path: Path) -> None:
    tar = tmp_path / "data/train/000000.tar"
    content = picture(0)
    pack(tar, *(m for i in range(10_000) for m in ((f"{i:05d}.png", content), (f"{i:05d}.cls", str(i).encode()))))
    dataset = index_dataset(tmp_path / "data", 1)
    assert len(dataset.classes) == 10_000
    assert "10,000" in vitrail("shards", "show", dataset.folder).stdout
