"""Data by its name: tars of others, whose index is made once, in the cache, and used again while they stay the same."""

import errno
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest

from shards import indexing, reader
from shards.dataset import Dataset
from shards.errors import ShardError
from shards.members import Contents, index_tar
from shards.open import Opener, Reading
from shards.places import short_hash
from shards.reader import Reader
from shards.synthetic import make_dataset
from shards.verify import verify
from tests.http_server import serving
from tests.running import vitrail
from tests.tars import Member, pack, picture


def samples(first: int, count: int, ending: str = "cls") -> list[Member]:
    """Return the members of samples of two classes."""
    members: list[Member] = []
    for number in range(first, first + count):
        members += [(f"{number:03d}.jpg", picture(number)), (f"{number:03d}.{ending}", str(number % 2).encode())]
    return members


def timm(folder: Path) -> Path:
    """Make tars as timm's data sets on the hub have them, and return their folder."""
    pack(folder / "imagenet1k-train-0000.tar", *samples(0, 4))
    pack(folder / "imagenet1k-train-0001.tar", *samples(4, 2))
    pack(folder / "imagenet1k-validation-00.tar", *samples(6, 2))
    splits = {
        "train": {"filenames": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"], "shard_lengths": [4, 2]},
        "validation": {"filenames": ["imagenet1k-validation-00.tar"], "shard_lengths": [2]},
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


def opened(spec: object, cache: Path, **options: Any) -> Dataset:
    """Open data with a cache of its own."""
    return Opener(Reading(cache=str(cache), cache_limit="1GB", **options), lambda _: None, processes=1).open(str(spec))


@contextmanager
def counted() -> Iterator[list[str]]:
    """Give the names of the tars that are read meanwhile."""
    read: list[str] = []

    def index(path: Path, *arguments: Any) -> Contents:
        read.append(path.name)
        return index_tar(path, *arguments)

    with patch.object(indexing, "index_tar", index):
        yield read


def files(folder: Path) -> dict[str, int]:
    """Return what lies in a folder, and when each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_tars_that_are_here_are_indexed_in_the_cache_and_left_as_they_are(tmp_path: Path) -> None:
    folder = timm(tmp_path / "data")
    before = files(folder)
    dataset = opened(folder, tmp_path / "cache")
    assert {split: len(index) for split, index in dataset.splits.items()} == {"train": 6, "val": 2}
    assert (dataset.classes, dataset.named) == (("0", "1"), str(folder))
    assert Reader(dataset.splits["val"]).read(1) == picture(7)
    assert verify(dataset.splits).problems == []
    assert dataset.missing_shards() == []
    assert files(folder) == before


def test_an_index_is_used_again_until_a_tar_changes(tmp_path: Path) -> None:
    folder, cache = timm(tmp_path / "data"), tmp_path / "cache"
    with counted() as read:
        first = opened(folder, cache)
        assert len(read) == 3
        assert opened(folder, cache).splits["train"].fingerprint == first.splits["train"].fingerprint
        assert len(read) == 3
        os.utime(folder / "imagenet1k-train-0000.tar", (1, 1))
        opened(folder, cache)
        assert len(read) == 6
        pack(folder / "imagenet1k-train-0001.tar", *samples(10, 2))
        assert opened(folder, cache).splits["train"].key(5) == "011"
    opened(folder, cache, label="auto", first_label=0)
    assert len(list((cache / "indexes").iterdir())) == 2  # one for each way to read them


def test_what_was_read_before_a_kill_is_not_read_again(tmp_path: Path) -> None:
    folder, cache = timm(tmp_path / "data"), tmp_path / "cache"
    pack(folder / "imagenet1k-train-0001.tar", ("x.jpg", b""), ("x.cls", b"no number"))
    with counted() as read:
        with pytest.raises(ShardError, match=r"imagenet1k-train-0001.tar: 'x.cls' holds no class number"):
            opened(folder, cache)
        pack(folder / "imagenet1k-train-0001.tar", *samples(4, 2))
        opened(folder, cache)
    assert read.count("imagenet1k-train-0000.tar") == 1
    assert not list(cache.rglob("parts"))


def test_an_index_is_made_by_one_of_several_at_once(tmp_path: Path) -> None:
    folder, cache = timm(tmp_path / "data"), tmp_path / "cache"
    found: list[Dataset] = []
    with counted() as read:
        threads = [Thread(target=lambda: found.append(opened(folder, cache))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read) == 3
    assert len({dataset.splits["train"].fingerprint for dataset in found}) == 1
    assert len(found) == 4


@pytest.mark.parametrize("damage", ["source.json", "dataset.json", "train/index.npy", "train/index.json"])
def test_an_index_that_was_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    folder, cache = timm(tmp_path / "data"), tmp_path / "cache"
    index = opened(folder, cache).folder
    (index / damage).write_bytes(b"{")
    assert len(opened(folder, cache).splits["train"]) == 6


SPECS: list[tuple[str, dict[str, Any], dict[str, int]]] = [  # names below the folder; how they are read; samples
    ("", {}, {"train": 6, "val": 2}),
    ("/imagenet1k-train-{{0000..0001}}.tar", {}, {"train": 6}),
    ("/imagenet1k-train-0001.tar::{at}/imagenet1k-validation-00.tar", {}, {"train": 2, "val": 2}),
    ("/list.txt", {}, {"train": 2}),
    ("", {"splits": ("train=*-0000.tar", "test=*-0001.tar")}, {"train": 4, "test": 2}),
    ("/other/shards", {}, {"train": 2}),
    ("/other", {"splits": ("train=*.tar",)}, {"train": 2}),
]


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("spec", "options", "expected"), SPECS)
def test_show_index_and_verify_take_the_same_names_and_flags(
    tmp_path: Path, spec: str, options: dict[str, Any], expected: dict[str, int], remote: bool
) -> None:
    folder = timm(tmp_path / "data")
    pack(folder / "other/shards/0.tar", *samples(20, 2))
    (folder / "list.txt").write_text("imagenet1k-train-0001.tar\n")
    cache = ["--data.cache", tmp_path / "cache", "--data.cache-limit", "1GB"]
    flags = [word for name, words in options.items() for word in (f"--data.{name}", *words)]
    with serving(folder) as server:
        at = server.url if remote else str(folder)
        source = at + spec.format(at=at)
        vitrail("shards", "index", source, *cache, *flags, "--processes", 1)
        shown = json.loads(vitrail("shards", "show", source, *cache, *flags, "--json").stdout)
        assert {split: said["samples"] for split, said in shown["splits"].items()} == expected
        said = vitrail("shards", "verify", source, *cache, *flags, "--processes", 1).stdout
        assert f"all {sum(expected.values())} samples are as the index says" in said
        dataset = opened(source, tmp_path / "cache", **options)
        assert {split: len(index) for split, index in dataset.splits.items()} == expected


def test_tars_of_several_servers_are_one_data_set(tmp_path: Path) -> None:
    pack(tmp_path / "a/train-0.tar", *samples(0, 2))
    pack(tmp_path / "b/val-0.tar", *samples(2, 2))
    with serving(tmp_path / "a") as first, serving(tmp_path / "b") as second:
        spec = f"{first.url}/train-0.tar::{second.url}/val-0.tar"
        splits = ("train=*/train-*", "val=*/val-[01].tar")
        with pytest.raises(
            ShardError, match=r"nobody says how many samples .* Read each once: vitrail shards"
        ) as caught:
            opened(spec, tmp_path / "cache", splits=splits)
        command = shlex.split(str(caught.value).partition("Read each once: ")[2])
        vitrail(*command[1:], "--processes", 1)  # as printed
        dataset = opened(spec, tmp_path / "cache", splits=splits)
        assert Reader(dataset.splits["val"]).read(0) == picture(2)


@pytest.mark.parametrize("label", ["txt", "folder", "json:y"])
def test_labels_stand_where_it_is_said(tmp_path: Path, label: str) -> None:
    folder = tmp_path / "data"
    for number, name in enumerate(("cat", "dog")):
        members = [(f"{name}/{number}.jpg", picture(number)), (f"{name}/{number}.txt", name.encode())]
        pack(folder / f"{number}.tar", *members, (f"{name}/{number}.json", json.dumps({"y": name}).encode()))
    with pytest.raises(
        ShardError, match=r"else lies there: 1 .json, 1 .txt. .*--data.label txt, json:FIELD, or folder"
    ):
        opened(folder, tmp_path / "cache")
    dataset = opened(folder, tmp_path / "cache", label=label)
    assert (dataset.classes, dataset.splits["train"].rows["label"].tolist()) == (("cat", "dog"), [0, 1])
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\n")
    renamed = opened(folder, tmp_path / "cache", label=label, class_names=str(names))
    assert (renamed.classes, renamed.splits["train"].rows["label"].tolist()) == (("dog", "cat"), [1, 0])
    assert verify(renamed.splits).problems == []


def test_what_labels_mean_tells_streams_from_each_other(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "turned.txt").write_text("dog\ncat\n")
    with serving(timm(tmp_path / "data")) as server:

        def fingerprint(**options: Any) -> str:
            return opened(server.url, tmp_path / "cache", **options).splits["train"].fingerprint

        names, turned = (str(tmp_path / file) for file in ("names.txt", "turned.txt"))
        same = [fingerprint(), fingerprint(first_label=0), fingerprint(class_names=names)]
        others = [
            fingerprint(first_label=1),
            fingerprint(label="json:fine"),
            fingerprint(label="json:coarse"),
            fingerprint(label="json:coarse", first_label=1),
            fingerprint(label="folder", class_names=names),
            fingerprint(label="folder", class_names=turned),
        ]
    assert set(same) == {short_hash('[["imagenet1k-train-0000.tar", 4], ["imagenet1k-train-0001.tar", 2]]')}
    assert len({*same, *others}) == 1 + len(others)


def test_names_of_classes_behind_a_url_need_the_names_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    pack(folder / "train-0.tar", ("a.jpg", picture(0)), ("a.txt", b"dog"))
    info = {"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [1]}}}
    (folder / "_info.json").write_text(json.dumps(info))
    with serving(folder) as server:
        dataset = opened(server.url, tmp_path / "cache", label="txt")
        with pytest.raises(ShardError, match=r"its labels are names .*--data.class-names FILE"):
            Reader(dataset.splits["train"]).read(0)
        (folder / "_info.json").write_text(json.dumps(info | {"class_names": ["cat", "dog"]}))
        dataset = opened(server.url, tmp_path / "cache", label="txt")
        assert Reader(dataset.splits["train"]).read(0) == picture(0)
        assert dataset.splits["train"].row(0)["label"] == 1


@pytest.mark.parametrize("remote", [False, True])
def test_tars_that_are_left_out_are_said(tmp_path: Path, remote: bool) -> None:
    folder = timm(tmp_path / "data")
    said: list[str] = []
    reading = Reading(cache=str(tmp_path / "cache"), cache_limit="1GB", splits=("train=*-0000.tar",))
    with serving(folder) as server:
        source = server.url if remote else str(folder)
        dataset = Opener(reading, said.append, processes=1).open(source)
    note = "2 tars are left out, which no pattern of --data.splits names."
    assert (f"{source}: {note}" in said) if remote else (note in dataset.head().get("notes", []))


def test_a_tar_of_another_length_than_the_list_says_is_named(tmp_path: Path) -> None:
    folder = timm(tmp_path / "data")
    pack(folder / "imagenet1k-train-0001.tar", *samples(4, 1))
    with pytest.raises(ShardError, match=r"imagenet1k-train-0001.tar: 1 samples, the list of lengths says 2"):
        opened(folder, tmp_path / "cache")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_an_index_that_cannot_be_written_beside_its_tars_can_lie_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = timm(tmp_path / "data")

    def refuse(path: Path, *_: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(indexing, "write_part", refuse)
        said = vitrail("shards", "index", folder, "--processes", 1, code=1).stderr
    assert f"{folder}/train/parts/" in said
    assert f"cannot be written ({os.strerror(number)}). The tars can be used as they are: --data {folder} has" in said
    assert len(opened(folder, tmp_path / "cache").splits["train"]) == 6


def test_a_folder_that_nobody_may_write_to_is_read() -> None:
    with TemporaryDirectory() as scratch:
        folder = timm(Path(scratch) / "data")
        folder.chmod(0o555)
        for path in (scratch, Path(scratch) / "cache"):
            Path(path).mkdir(exist_ok=True)
            os.chmod(path, 0o777)
        opened("digits", Path(scratch) / "cache")  # imports all that it needs, as root where the tests are root's
        user = os.geteuid()
        if user == 0:  # rights do not bind root
            os.seteuid(65534)
        try:
            assert len(opened(folder, Path(scratch) / "cache").splits["train"]) == 6
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("torn", ["index.npy", "index.json", "dataset.json"])
def test_what_is_torn_of_an_index_in_the_cache_is_fetched_again(tmp_path: Path, torn: str) -> None:
    source = make_dataset(tmp_path / "data", classes=2, size=8, samples={"train": 6, "val": 2})
    with serving(tmp_path / "data") as server:
        opened(server.url, tmp_path / "cache")
        for path in (tmp_path / "cache/datasets").rglob(torn):
            path.write_bytes(path.read_bytes()[:-9])
        again = opened(server.url, tmp_path / "cache")
        assert {name: index.fingerprint for name, index in again.splits.items()} == {
            name: index.fingerprint for name, index in source.splits.items()
        }


def test_an_index_that_is_torn_where_it_lies_says_so(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", classes=2, size=8, samples={"train": 6})
    rows = tmp_path / "data/train/index.npy"
    rows.write_bytes(rows.read_bytes()[:-9])
    with serving(tmp_path / "data") as server, pytest.raises(ShardError) as caught:
        opened(server.url, tmp_path / "cache")
    assert f"Make it anew where it lies, and copy it to {server.url} again." in str(caught.value)
    assert "vitrail shards index" not in str(caught.value)


def test_a_shard_that_cannot_be_indexed_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reader, "write_part", refuse)
    with serving(timm(tmp_path / "data")) as server:
        index = opened(server.url, tmp_path / "cache").splits["train"]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(ShardError, match=r"No space left on device\. Make room, or name another --data\.cache"):
                reader.arrive(index, 0)
    assert len(os.listdir("/proc/self/fd")) <= before
