"""Labels in tars that others made: where they stand, what they are, and which numbers they become."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.index import Index
from shards.indexing import index_dataset
from shards.labels import MAX_NAME, Labels, class_number, read_class_names
from shards.verify import verify
from tests.tars import pack, picture

WHERE = "x.tar: 'a'"


def read(label: bytes, ending: str, source: str = "auto") -> int | str:
    return Labels(source).read(label, ending, WHERE)


@pytest.mark.parametrize(("label", "ending", "source", "found"), [
    (b"7\n", "cls", "auto", 7), (b"7", "cls.txt", "auto", 7), (b"\xef\xbb\xbf007 ", "cls", "auto", 7),
    (b"7\n", "txt", "txt", 7), (b"cat\r\n", "txt", "txt", "cat"), (b"\xef\xbb\xbfcat", "txt", "txt", "cat"),
    (b"great white shark, white shark", "txt", "txt", "great white shark, white shark"),
    (b"12th street", "txt", "txt", "12th street"), ("\u00e9l\u00e9phant".encode(), "txt", "txt", "\u00e9l\u00e9phant"),
    (b'{"label": 7}', "json", "json:label", 7), (b'{"label": "cat", "x": [1]}', "json", "json:label", "cat"),
    (b'{"label": "7"}', "json", "json:label", 7), (b'{"label": "\\ud800"}', "json", "json:label", "\ud800"),
])  # fmt: skip
def test_a_label_is_a_number_or_a_name(label: bytes, ending: str, source: str, found: int | str) -> None:
    assert read(label, ending, source) == found


@pytest.mark.parametrize(("label", "ending", "source", "words"), [
    (b"-1", "cls", "auto", "class number -1; classes are numbered from 0"),
    (b"-1", "txt", "txt", "class number -1"), (b'{"label": -1}', "json", "json:label", "class number -1"),
    (b'{"label": "-1"}', "json", "json:label", "class number -1"),
    (b"3.0", "cls", "auto", r"no class number but '3\.0'"), (b"3.0", "txt", "txt", r"no class number but '3\.0'"),
    (b"1e3", "txt", "txt", "no class number but '1e3'"),
    (b'{"label": 3.0}', "json", "json:label", "'label' is 3.0, no number and no name"),
    (b'{"label": "3.0"}', "json", "json:label", r"no class number but '3\.0'"),
    (b"2000000000", "cls", "auto", "more than 1,000,000"), (b"2000000000", "txt", "txt", "more than 1,000,000"),
    (b'{"label": 2000000000}', "json", "json:label", "more than 1,000,000"),
    (b"", "cls", "auto", "no class number but ''"), (b" \n", "txt", "txt", "'' is not a label of one line"),
    (b'{"label": ""}', "json", "json:label", "'' is not a label"), (b"a\nb", "txt", "txt", "not a label of one line"),
    (b'{"label": null}', "json", "json:label", "None, no number and no name"),
    (b'{"label": true}', "json", "json:label", "True, no number and no name"),
    (b'{"label": [1]}', "json", "json:label", r"\[1\], no number"),
    (b"[]", "json", "json:label", "no field 'label', but list"),
    (b'{"class": 1, "id": 2}', "json", "json:label", "has no field 'label', but 'class', 'id'"),
    (b"{", "json", "json:label", "no JSON"), (b"[" * 100_000, "json", "json:label", "no JSON"),
    (b'{"label": ' + b"9" * 5000 + b"}", "json", "json:label", "no JSON"),
    (b"\x00\x01\x02", "cls", "auto", "holds no class number"), (b"\x80\x02}q", "txt", "txt", "no name in UTF-8"),
    (b"\x80\x04K\x07.", "cls", "auto", "holds no class number"),
    (b"x" * (MAX_NAME + 1), "txt", "txt", "not a label of one line"),
    (b'{"label": "' + b"x" * 2000 + b'"}', "json", "json:label", "not a label of one line of at most"),
    ("\u0663".encode(), "cls", "auto", "no class number"),
])  # fmt: skip
def test_what_is_neither_is_refused_with_the_file_and_what_it_holds(
    label: bytes, ending: str, source: str, words: str
) -> None:
    with pytest.raises(ShardError, match=f"{WHERE}.*{words}"):
        read(label, ending, source)


@pytest.mark.parametrize("source", ["", "cls", "json", "json:", "auto:x", "txt:", "folder:1", "JSON:x"])
def test_words_that_say_no_place_of_labels_are_refused(source: str) -> None:
    with pytest.raises(ShardError, match=f"--data.label {source}: it is auto, txt, json:FIELD or folder"):
        Labels(source)


def sample(key: str, label: Any, ending: str = "cls") -> list[tuple[str, bytes]]:
    content = json.dumps(label).encode() if ending == "json" else str(label).encode()
    return [(f"{key}.jpg", picture(hash(key) % 1000)), (f"{key}.{ending}", content)]


Found = Mapping[str, list[int]]

SETS: list[tuple[Labels, list[list[tuple[str, bytes]]], tuple[str, ...], list[list[int]], list[str]]] = [
    # where labels stand, members of each tar, classes, numbers in each tar, words of the notes
    (Labels("txt"), [[*sample("a", "dog", "txt"), *sample("b", "cat", "txt")], sample("c", "ant", "txt")],
     ("ant", "cat", "dog"), [[2, 1], [0]], []),
    (Labels("txt"), [sample("a", 1, "txt"), sample("b", 0, "txt")], ("0", "1"), [[1], [0]], []),
    (Labels("txt"), [sample("a", 3, "txt"), sample("b", "cat", "txt")], ("3", "cat"), [[0], [1]],
     ["Some labels are numbers and others are names ('3', 'cat'): all are taken as names."]),
    (Labels("json:y"), [sample("a", {"y": "dog", "i": 3}, "json"), sample("b", {"y": "cat"}, "json")],
     ("cat", "dog"), [[1], [0]], []),
    (Labels("json:y"), [sample("a", {"y": 1}, "json"), sample("b", {"y": 0}, "json")], ("0", "1"), [[1], [0]], []),
    (Labels("folder"), [[("n02/a.jpg", picture(1)), ("x/n01/b.jpg", picture(2))], [("n03/c.jpg", picture(3))]],
     ("n01", "n02", "n03"), [[1, 0], [2]], []),
    (Labels("folder"), [[("10/a.jpg", picture(1)), ("9/b.jpg", picture(2))]], ("10", "9"), [[0, 1]],
     ["The names of the classes are numbers, in the order of the alphabet."]),
    (Labels("txt", names=("dog", "cat", "ant")), [sample("a", "dog", "txt"), sample("b", "ant", "txt")],
     ("dog", "cat", "ant"), [[0], [2]], []),
    (Labels("folder", names=("n03", "n01")), [[("n01/a.jpg", picture(1))], [("n03/b.jpg", picture(2))]],
     ("n03", "n01"), [[1], [0]], []),
    (Labels(names=("dog", "cat")), [sample("a", 1), sample("b", 0)], ("dog", "cat"), [[1], [0]], []),
    (Labels(first=1, names=("dog", "cat")), [sample("a", 1), sample("b", 2)], ("dog", "cat"), [[0], [1]], []),
    (Labels(first=1), [sample("a", 1), sample("b", 4)], ("1", "2", "3", "4"), [[0], [3]],
     ["2 numbers below the highest label have no sample, the first is 2."]),
    (Labels(), [sample("a", 0, "cls.txt"), sample("b", 1, "CLS")], ("0", "1"), [[0], [1]], []),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "tars", "classes", "numbers", "notes"), SETS)
def test_labels_of_all_tars_become_numbers(
    tmp_path: Path,
    labels: Labels,
    tars: list[list[tuple[str, bytes]]],
    classes: tuple[str, ...],
    numbers: list[list[int]],
    notes: list[str],
) -> None:
    for number, members in enumerate(tars):
        pack(tmp_path / f"train/{number}.tar", *members)
    dataset = index_dataset(tmp_path, 1, labels)
    index: Index = dataset.splits["train"]
    assert dataset.classes == classes
    assert [index.rows_of(shard)["label"].tolist() for shard in range(len(index.shards))] == numbers
    assert [note for note in dataset.head().get("notes", []) if "alone" not in note] == notes
    assert verify({"train": index}).problems == []  # reads them again, from the words that the index keeps


@pytest.mark.parametrize(("labels", "members", "words"), [
    (Labels(names=("dog", "cat")), sample("a", 2),
     "label of 'a' is 2, of 2 named .* first one is 1: --data.first-label 1"),
    (Labels(first=1, names=("dog",)), sample("a", 2),
     r"label of 'a' is 2, of 1 named classes, the first of which is 1\.$"),
    (Labels("txt", names=("dog", "cat")), sample("a", "ant", "txt"), "label of 'a' is 'ant', none of the 2 names"),
    (Labels(first=1), sample("a", 0), "labels are numbered from 1, as --data.first-label says"),
    (Labels("folder"), [("a.jpg", picture(1))], "'a' lies in no folder that could be its label"),
    (Labels("folder"), [("./a.jpg", picture(1))], "lies in no folder that could be its label"),
    (Labels("folder"), [("../a.jpg", picture(1))], "lies in no folder that could be its label"),
    (Labels(), [("a.jpg", picture(1)), ("a.json", b"{}"), ("a.txt", b"cat")],
     "no label .*What else lies there: 1 .json, 1 .txt. Say where the labels stand: --data.label txt, json:FIELD"),
    (Labels(), [("n01/a.jpg", picture(1))], "no label .*json:FIELD, or folder for the folder of the key"),
    (Labels(), sample("a", 3), "labels go from 3 to 3"),
])  # fmt: skip
def test_labels_that_cannot_be_numbered_are_refused(
    tmp_path: Path, labels: Labels, members: list[tuple[str, bytes]], words: str
) -> None:
    pack(tmp_path / "train/0.tar", *members)
    with pytest.raises(ShardError, match=words):
        index_dataset(tmp_path, 1, labels)


def test_numbers_in_one_tar_that_are_no_names_of_others_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "train/0.tar", *sample("a", "dog", "txt"))
    pack(tmp_path / "train/1.tar", *sample("b", 0, "txt"))
    with pytest.raises(ShardError, match="labels are '0', none of the 2 names of the classes"):
        index_dataset(tmp_path, 1, Labels("txt", names=("dog", "cat")))


def test_class_names_stand_in_the_list_of_a_place(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", *sample("a", 1), *sample("b", 0))
    info = {"splits": {"train": {"filenames": ["0.tar"], "shard_lengths": [2]}}, "class_names": ["dog", "cat"]}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert index_dataset(tmp_path, 1).classes == ("dog", "cat")
    assert index_dataset(tmp_path, 1, Labels(names=("x", "y"))).classes == ("x", "y")


@pytest.mark.timeout(300)
def test_a_file_of_class_names_is_one_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "names.txt"
    path.write_text("dog\n\n cat \r\n")
    assert read_class_names(str(path)) == ("dog", "cat")
    path.write_text("dog\ncat\ndog\n")
    with pytest.raises(ShardError, match=f"--data.class-names {path}: names 'dog' twice"):
        read_class_names(str(path))
    path.write_text("\n")
    with pytest.raises(ShardError, match="0 names; write one a line"):
        read_class_names(str(path))
    path.write_text("\n".join(map(str, range(1_000_001))))
    with pytest.raises(ShardError, match="1,000,001 names; write one a line, at most 1,000,000"):
        read_class_names(str(path))
    monkeypatch.setattr("shards.places.LARGEST_TEXT", 4096)
    with pytest.raises(ShardError, match=r"--data.class-names .*larger than 4,096 bytes"):
        read_class_names(str(path))
    with pytest.raises(ShardError, match=r"--data.class-names /dev/zero: not a regular file"):
        read_class_names("/dev/zero")
    with pytest.raises(ShardError, match=f"--data.class-names {tmp_path}: not a regular file"):
        read_class_names(str(tmp_path))
    with pytest.raises(ShardError, match="no such file"):
        read_class_names(str(tmp_path / "none"))


def test_a_class_number_has_few_digits() -> None:
    with pytest.raises(ShardError, match="no class number"):
        class_number(b"0" * 5000, WHERE)
