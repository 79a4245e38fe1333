"""Which tars a name stands for, and to which split each belongs: layouts as they are found, and hostile ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.tars import expand, find_tars, split_of_name
from tests.http_server import serving

TIMM = {
    "train": {"filenames": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"], "shard_lengths": [3, 2]},
    "validation": {"filenames": ["imagenet1k-validation-00.tar"], "shard_lengths": [4]},
}


def put(folder: Path, *names: str, info: Any = None) -> str:
    """Make files of these names, and return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if info is not None:
        (folder / "_info.json").write_text(info if isinstance(info, str) else json.dumps(info))
    return str(folder)


LAYOUTS: list[tuple[list[str], Mapping[str, list[str]]]] = [  # files: the tars of each split
    (
        ["imagenet-train-000000.tar", "imagenet-train-000001.tar", "imagenet-val-000000.tar"],
        {"train": ["imagenet-train-000000.tar", "imagenet-train-000001.tar"], "val": ["imagenet-val-000000.tar"]},
    ),
    (
        ["train/0.tar", "val/0.tar", "test/0.tar"],
        {"train": ["train/0.tar"], "val": ["val/0.tar"], "test": ["test/0.tar"]},
    ),
    (["Training/0.tar", "validation/0.tar"], {"train": ["Training/0.tar"], "val": ["validation/0.tar"]}),
    (["train/0.tar", "eval/0.tar"], {"train": ["train/0.tar"], "test": ["eval/0.tar"]}),
    (["0.tar", "1.tar"], {"train": ["0.tar", "1.tar"]}),
    (["shards/0.tar", "shards/1.tar"], {"train": ["shards/0.tar", "shards/1.tar"]}),
    (["train/0.tar", "holdout/0.tar"], {"train": ["train/0.tar"], "holdout": ["holdout/0.tar"]}),
    (
        ["train/a/0.tar", "train/b/0.tar", "val/0.tar"],
        {"train": ["train/a/0.tar", "train/b/0.tar"], "val": ["val/0.tar"]},
    ),
    (["train/val-0.tar"], {"train": ["train/val-0.tar"]}),
    (
        ["train-0.TAR", "README.md", "train-0.idx", ".hidden/1.tar", "lost+found/2.tar", "._train-0.tar"],
        {"train": ["train-0.TAR"]},
    ),
]


@pytest.mark.parametrize(("names", "splits"), LAYOUTS)
def test_splits_follow_from_folders_and_names(
    tmp_path: Path, names: list[str], splits: Mapping[str, list[str]]
) -> None:
    found = find_tars(put(tmp_path / "data", *names))
    assert {split: list(of_split) for split, of_split in found.splits.items()} == splits
    assert list(found.splits) == list(splits)  # train, val, test, others
    assert bool(found.notes) == (splits.keys() == {"train"} and not split_of_name(names[0]))


@pytest.mark.parametrize(("folder", "split"), [("val", "val"), ("training", "train"), ("mine", "train")])
def test_tars_of_one_folder_are_of_the_split_that_it_is_called(tmp_path: Path, folder: str, split: str) -> None:
    put(tmp_path / folder, "0.tar", "1.tar")
    for spec in (tmp_path / folder, tmp_path / folder / "{0..1}.tar"):
        assert find_tars(str(spec)).splits == {split: ("0.tar", "1.tar")}


@pytest.mark.parametrize(("name", "split"), [
    ("imagenet1k-train-0000.tar", "train"), ("imagenet1k-validation-00.tar", "val"), ("dev_3.tar", "val"),
    ("eval.0.tar", "test"), ("TEST-1.tar", "test"), ("restrain-0.tar", ""), ("train-test-0.tar", ""), ("0.tar", ""),
])  # fmt: skip
def test_a_split_is_a_word_of_a_name(name: str, split: str) -> None:
    assert split_of_name(name) == split


def test_timms_list_is_taken_with_its_lengths_and_what_it_leaves_out_is_said(tmp_path: Path) -> None:
    names = [name for split in TIMM.values() for name in split["filenames"]]
    spec = put(tmp_path, *map(str, names), "extra-0.tar", info={"splits": TIMM, "classes": ["cat", "dog"]})
    found = find_tars(spec)
    assert {split: list(of_split) for split, of_split in found.splits.items()} == {
        "train": names[:2],
        "val": names[2:],
    }
    assert dict(found.lengths) == dict(zip(names, (3, 2, 4), strict=True))
    assert found.classes == ("cat", "dog")
    (note,) = found.notes
    assert "_info.json does not name are left out: 'extra-0.tar'" in note


@pytest.mark.parametrize("remote", [False, True])
def test_splits_that_are_said_keep_the_lengths_of_a_list(tmp_path: Path, remote: bool) -> None:
    put(tmp_path, "a-0.tar", "a-1.tar", "b-0.tar", "c-0.tar",
        info={"splits": {"all": {"filenames": ["a-0.tar", "a-1.tar", "b-0.tar", "c-0.tar"],
                                 "shard_lengths": [1, 2, 3, 4]}}})  # fmt: skip
    with serving(tmp_path) as server:
        found = find_tars(server.url if remote else str(tmp_path), ["train=a-{0..1}.tar", "valid=b-*.tar"])
    assert found.splits == {"train": ("a-0.tar", "a-1.tar"), "val": ("b-0.tar",)}
    assert found.lengths == {"a-0.tar": 1, "a-1.tar": 2, "b-0.tar": 3}
    assert found.notes == ("1 tars are left out, which no pattern of --data.splits names.",)


def test_splits_are_said_by_the_path_or_by_its_last_part(tmp_path: Path) -> None:
    spec = put(tmp_path, "x/shard-0.tar", "y/shard-0.tar", "y/other-0.tar")
    assert find_tars(spec, ["train=shard-*.tar", "val=other-*"]).splits["train"] == ("x/shard-0.tar", "y/shard-0.tar")
    assert find_tars(spec, ["train=x/*.tar", "val=y/*"]).splits["val"] == ("y/other-0.tar", "y/shard-0.tar")


@pytest.mark.parametrize(("said", "words"), [
    (["train"], "--data.splits train: write it as train=PATTERN"),
    (["=0.tar"], "write it as train=PATTERN"),
    (["train=x*"], "no tar there has such a name; there is '0.tar', '1.tar'"),
    (["train=0.tar", "val=*"], "names 0.tar for train and for val"),
    (["../x=*"], "'../x' is no name of a split"),
])  # fmt: skip
def test_words_that_say_no_split_are_refused(tmp_path: Path, said: list[str], words: str) -> None:
    with pytest.raises(ShardError, match=words.replace("*", r"\*")):
        find_tars(put(tmp_path / "data", "0.tar", "1.tar"), said)


def test_tars_of_no_split_beside_others_are_named_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"'other-0.tar' belong to no split.*--data.splits 'train=PATTERN'"):
        find_tars(put(tmp_path, "train-0.tar", "other-0.tar"))


NAMES: list[tuple[str, list[str]]] = [
    ("{tmp}/x/train-{{0..1}}.tar", ["train-0.tar", "train-1.tar"]),
    ("{tmp}/x/train-0.tar", ["train-0.tar"]),
    ("{tmp}/x/train-0.tar::{tmp}/y/train-7.tar", ["x/train-0.tar", "y/train-7.tar"]),
    ("{tmp}/{{x/train-0,y/train-7}}.tar", ["x/train-0.tar", "y/train-7.tar"]),
    ("x/train-0.tar::y/train-7.tar", ["x/train-0.tar", "y/train-7.tar"]),
    ("train-3.tar", ["train-3.tar"]),
    ("{tmp}/list.txt", ["train-3.tar", "x/train-0.tar", "x/train-1.tar", "y/train-7.tar"]),
    ("list.txt", ["train-3.tar", "x/train-0.tar", "x/train-1.tar", "y/train-7.tar"]),
]


@pytest.mark.parametrize(("spec", "names"), NAMES)
def test_tars_are_named_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, names: list[str]
) -> None:
    put(tmp_path, "train-3.tar", "x/train-0.tar", "x/train-1.tar", "y/train-7.tar")
    (tmp_path / "list.txt").write_text(f"# mine\ntrain-3.tar\n\nx/train-{{0..1}}.tar\n{tmp_path}/y/train-7.tar\n")
    monkeypatch.chdir(tmp_path)
    found = find_tars(spec.format(tmp=tmp_path))
    assert found.splits == {"train": tuple(names)}
    assert all((Path(found.place) / name).exists() for name in names)


@pytest.mark.parametrize(("spec", "place", "names"), [
    ("http://h/d/train-{0..1}.tar", "http://h/d", ["train-0.tar", "train-1.tar"]),
    ("http://h/train/0.tar::http://i/val/1.tar", "http://", ["h/train/0.tar", "i/val/1.tar"]),
    ("s3://train/0.tar::s3://val/0.tar", "s3://", ["train/0.tar", "val/0.tar"]),
    ("s3://tr/train-0.tar::s3://tra/train-0.tar", "s3://", ["tr/train-0.tar", "tra/train-0.tar"]),
])  # fmt: skip
def test_urls_are_named_one_by_one(spec: str, place: str, names: list[str]) -> None:
    found = find_tars(spec)
    assert (found.place, sorted(name for split in found.splits.values() for name in split)) == (place, names)
    assert found.is_remote


def test_a_list_behind_a_url_names_what_is_beside_it_and_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("train-0.tar\nx/train-{1..2}.tar\nhttp://other/train-9.tar\n")
    (tmp_path / "bad.txt").write_text("/etc/train-0.tar\n")
    with serving(tmp_path) as server:
        host = server.url.removeprefix("http://")
        assert find_tars(f"{server.url}/list.txt").splits["train"] == (
            f"{host}/train-0.tar", f"{host}/x/train-1.tar", f"{host}/x/train-2.tar", "other/train-9.tar",
        )  # fmt: skip
        with pytest.raises(ShardError, match=r"bad.txt: lists '/etc/train-0.tar', a file of this machine"):
            find_tars(f"{server.url}/bad.txt")


def test_a_listing_of_a_server_is_read_as_a_folder_is(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.tar", "train/1.tar", "val/0.tar", "README.md", ".git/x.tar")
    with serving(tmp_path) as server:
        there = find_tars(server.url)
    assert there.splits == find_tars(str(tmp_path)).splits == {
        "train": ("train/1.tar", "train/a/0.tar"), "val": ("val/0.tar",),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "tool"), [
    ("0.tar.gz", "gunzip"), ("0.tgz", "gunzip"), ("0.TAR.GZ", "gunzip"), ("0.tar.zst", "unzstd"),
    ("0.tar.xz", "unxz"), ("0.tar.bz2", "bunzip2"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["", "train/", "train/a/"])
def test_a_compressed_tar_is_refused_with_the_remedy_wherever_it_lies(
    tmp_path: Path, where: str, name: str, tool: str
) -> None:
    spec = put(tmp_path / "data", "train/1.tar", f"{where}{name}")
    listed = put(tmp_path / "listed", f"{where}{name}", info={"splits": {"train": {"filenames": [f"{where}{name}"]}}})
    for refused in (spec, f"{spec}/{where}{name}", listed):
        with pytest.raises(ShardError, match=f"{name}' is compressed.*plain tars: {tool} {name}"):
            find_tars(refused)


@pytest.mark.parametrize(("names", "words"), [
    ("{tmp}/0.tar::{tmp}/0.tar", "more than once"),
    ("{tmp}/0.tar::{tmp}/8.tar", r"'8.tar': not there"),
    ("{tmp}/0.tar::http://h/0.tar", r"several kinds of places \(files here, http://\)"),
    ("s3://b/0.tar::http://h/0.tar", r"several kinds of places \(http://, s3://\)"),
    ("{tmp}/0.tar::{tmp}/0.zip", r"'0.zip' is no name of a tar"),
    ("::", "names no tar"),
    ("{tmp}/none.txt", "no such list of tars"),
    ("{tmp}/empty.txt", "names no tar"),
    ("{tmp}/{{0..1.tar", "Unbalanced braces.*Write the names as train-"),
    ("{tmp}", "no tars there"),
])  # fmt: skip
def test_names_that_stand_for_no_tars_are_refused(tmp_path: Path, names: str, words: str) -> None:
    put(tmp_path, "x/0.tar", "x/empty.txt", "none/a.jpg")
    where = tmp_path / ("none" if names == "{tmp}" else "x")
    with pytest.raises(ShardError, match=words):
        find_tars(names.format(tmp=where))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bomb", [
    "{0..9}" * 30, "{0..999999999}", "{-999999999..0}", "{a..z}" * 12, "{a,b}" * 40, "{{0..9}{0..9},x}" * 9,
    "{x,{0..99999}{0..99999}}", "{" * 3000 + "a,b" + "}" * 3000, "{0.." + "9" * 5000 + "}", "x" * 4096 + "{0..99999}",
    "{0..9..0}" * 20,
])  # fmt: skip
def test_a_pattern_of_too_many_names_is_refused_at_once(bomb: str) -> None:
    with pytest.raises(ShardError, match=r"too many tars|braces within|integer string"):
        find_tars(f"{bomb}.tar")


@pytest.mark.parametrize(("pattern", "names"), [
    ("{00..10..5}", ["00", "05", "10"]), ("{b,{2..3}}{x,y}", ["bx", "by", "2x", "2y", "3x", "3y"]),
    ("plain", ["plain"]), ("{c..a}", ["c", "b", "a"]),
    ("{{0..9},{20..29}}", [*map(str, range(10)), *map(str, range(20, 30))]),
])  # fmt: skip
def test_patterns_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


def test_a_long_pattern_is_expanded() -> None:
    assert len(expand("shard-{000000..999999}.tar")) == 1_000_000
    with pytest.raises(ShardError, match="too many"):
        expand("shard-{0000000..1000000}.tar")


HOSTILE = ("../x.tar", "../../x.tar", "/etc/x.tar", "a\\x.tar", "pipe:cat http://h/x.tar", "http://h/x.tar",
           "a/../../x.tar", "x\0.tar", "\ud800.tar", "", ".", "file:///x.tar")  # fmt: skip


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_list_of_a_place_leads_nowhere_else(tmp_path: Path, name: str, remote: bool) -> None:
    put(tmp_path, "0.tar", info={"splits": {"train": {"filenames": ["0.tar", name]}}})
    with serving(tmp_path) as server, pytest.raises(ShardError, match=r"_info.json: holds the name .* leads out of it"):
        find_tars(server.url if remote else str(tmp_path))


TRAIN = {"filenames": ["0.tar", "1.tar"]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("info", "words"), [
    ({"splits": {"train": TRAIN | {"shard_lengths": [1]}}}, "2 filenames of 'train', but 1 shard_lengths"),
    ({"splits": {"train": TRAIN | {"shard_lengths": [1, -1]}}}, "one below 0"),
    ({"splits": {"train": TRAIN | {"shard_lengths": [10**12, 1]}}}, "more than 1,000,000,000,000 in all"),
    ({"splits": {"train": TRAIN | {"shard_lengths": [1, 2.0]}}}, "Expected `int`, got `float`"),
    ({"splits": {"train": TRAIN | {"shard_lengths": [1, True]}}}, "Expected `int`"),
    ({"splits": {"train": TRAIN | {"shard_lengths": [1, "2"]}}}, "Expected `int`"),
    ({"splits": {"train": TRAIN, "val": TRAIN}}, "'0.tar', '1.tar' more than once"),
    ({"splits": {"train": TRAIN, "Training": {"filenames": ["2.tar"]}}}, "two splits are called 'train'"),
    ({"splits": {"../../evil": TRAIN}}, "'../../evil' is no name of a split"),
    ({"splits": {"..": TRAIN}}, "is no name of a split"),
    ({"splits": {"a/b": TRAIN}}, "is no name of a split"),
    ({"splits": {"/etc": TRAIN}}, "is no name of a split"),
    ({"splits": {"": TRAIN}}, "is no name of a split"),
    ({"splits": {"x" * 300: TRAIN}}, "is no name of a split"),
    ({"splits": {"\x1b[31m\0": TRAIN}}, r"'\\x1b\[31m\\x00' is no name of a split"),
    ({"splits": {}}, "names no tars"),
    ({"splits": []}, "Expected `object`"),
    ([], "Expected `object`"),
    ("[" * 100_000, "_info.json: .*it should hold splits"),
    ('{"splits": ' * 100_000, "_info.json: .*it should hold splits"),
    ("{", "it should hold splits with filenames"),
    ('{"splits": {"train": {"filenames": ["0.tar"], "shard_lengths": [' + "9" * 5000 + "]}}}", "it should hold splits"),
])  # fmt: skip
def test_a_list_of_a_place_that_cannot_be_is_refused(tmp_path: Path, info: Any, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        find_tars(put(tmp_path, "0.tar", "1.tar", "2.tar", info=info))


def test_a_list_is_read_up_to_a_bound_and_from_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.places.LARGEST_TEXT", 4096)
    (tmp_path / "list.txt").write_text("0.tar\n" * 1000)
    (tmp_path / "_info.json").write_text(" " * 5000)
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    with serving(tmp_path) as server:
        for spec in (f"{tmp_path}/list.txt", str(tmp_path), f"{server.url}/list.txt", server.url):
            with pytest.raises(ShardError, match=r"(list.txt|_info.json): larger than 4,096 bytes"):
                find_tars(spec)
    with pytest.raises(ShardError, match=r"device.txt: not a regular file"):
        find_tars(f"{tmp_path}/device.txt")


@pytest.mark.parametrize(("spec", "words"), [
    ("pipe:cat x.tar", "`pipe:` would run a command"),
    ("pipe:curl http://h/x.tar", "`pipe:` would run a command"),
    ("x.tar::pipe:cat y.tar", "`pipe:` would run a command|pipe:cat y.tar': not there"),
    ("pipe:{a,b}.tar", "`pipe:` would run a command"),
    ("file:///etc/x.tar", "file:// is not read. What is: http://"),
    ("ftp://h/x.tar", "ftp:// is not read"),
    ("zip://x.tar::http://h/a.zip", "zip:// is not read"),
    ("simplecache::https://h/x.tar", "simplecache"),
    ("local:///x.tar", "local:// is not read"),
])  # fmt: skip
@pytest.mark.parametrize("listed", [False, True])
def test_no_other_way_to_bytes_is_taken(tmp_path: Path, spec: str, words: str, listed: bool) -> None:
    if listed:
        (tmp_path / "list.txt").write_text(f"{spec}\n")
        spec = f"{tmp_path}/list.txt"
    with pytest.raises(ShardError, match=words):
        find_tars(spec)
