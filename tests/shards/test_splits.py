"""Splits in other roles, and several as one, of any data set."""

import json
from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.errors import ShardError
from shards.open import Opener, Reading
from shards.reader import Reader, arrive
from shards.splits import names_splits
from shards.synthetic import make_dataset
from tests.http_server import serving
from tests.running import vitrail
from tests.tars import Member, pack, picture

SIZES = {"train": 4, "val": 3, "test": 6}


def opened(spec: object, cache: Path, *splits: str) -> Dataset:
    """Open data with splits in the roles that are said."""
    reading = Reading(cache=str(cache), cache_limit="1GB", splits=splits)
    return Opener(reading, lambda _: None, processes=1).open(str(spec))


def sizes(dataset: Dataset) -> dict[str, int]:
    """Return the samples of each split."""
    return {split: len(index) for split, index in dataset.splits.items()}


def contents(dataset: Dataset, split: str) -> list[tuple[int, bytes]]:
    """Return label and bytes of each sample of a split."""
    index = dataset.splits[split]
    if index.known is None:
        for shard in range(len(index.shards)):
            arrive(index, shard)
    reader = Reader(index)
    return [(int(index.row(sample)["label"]), reader.read(sample)) for sample in range(len(index))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of ours, several shards a split."""
    return make_dataset(tmp_path / "data", classes=2, size=8, samples=SIZES, samples_per_shard=2).folder


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("train=train+val", "val=test"), {"train": 7, "val": 6}),  # DeiT's on Flowers-102
        (("train=test", "val=train+val"), {"train": 6, "val": 7}),  # the guide's
        (("train=training", "test=dev"), {"train": 4, "test": 3}),  # as folders may be spelled
        (("train=val",), {"train": 3}),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_splits_take_the_roles_that_are_said(
    folder: Path, tmp_path: Path, said: tuple[str, ...], expected: dict[str, int], remote: bool
) -> None:
    own = opened(folder, tmp_path / "own")
    with serving(folder) as server:
        dataset = opened(server.url if remote else folder, tmp_path / "cache", *said)
        assert sizes(dataset) == expected
        for words in said:
            role, _, names = words.partition("=")
            parts = [{"training": "train", "dev": "val"}.get(name, name) for name in names.split("+")]
            assert contents(dataset, role) == [sample for part in parts for sample in contents(own, part)]
    assert {split: said["samples"] for split, said in dataset.head()["splits"].items()} == expected


def test_other_roles_are_other_data(folder: Path, tmp_path: Path) -> None:
    prints = {
        opened(folder, tmp_path, *said).splits["train"].fingerprint
        for said in ((), ("train=val",), ("train=train+val",), ("train=val+train",), ("train=train+test",))
    }
    assert len(prints) == 5


@pytest.mark.parametrize("lengths", [True, False])
def test_tars_of_others_can_be_joined_too(tmp_path: Path, lengths: bool) -> None:
    tars, info = tmp_path / "tars", {}
    for number, (split, size) in enumerate(SIZES.items()):
        members: list[Member] = []
        for sample in range(size):
            members += [(f"{sample}.jpg", picture(10 * number + sample)), (f"{sample}.cls", b"0")]
        pack(tars / f"{split}.tar", *members)
        info[split] = {"filenames": [f"{split}.tar"], "shard_lengths": [size]}
    with serving(tars) as server:
        if lengths:  # they are indexed as they arrive, a joined one too
            (tars / "_info.json").write_text(json.dumps({"splits": info}))
        dataset = opened(server.url if lengths else tars, tmp_path / "cache", "train=train+test", "val=val")
        assert sizes(dataset) == {"train": 10, "val": 3}
        expected = [picture(number) for number in (*range(4), *range(20, 26))]
        assert [image for _, image in contents(dataset, "train")] == expected


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (("train=train+tset",), "--data.splits train=train+tset: no split 'tset' there; it has 'test', 'train', 'val'"),
        (("train=train+val", "val=val"), "--data.splits names val for train and for val"),
        (("train=train+train",), "--data.splits names train for train and for train"),
        (("train=train", "training=val"), "--data.splits says twice what train is. Join splits: train=A+B"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, tmp_path: Path, said: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ShardError) as error:
        opened(folder, tmp_path, *said)
    assert complaint in str(error.value)


def test_names_of_splits_are_told_from_patterns_of_tars() -> None:
    assert all(map(names_splits, ("train=val", "train=train+val", "a=b.c")))
    assert not any(map(names_splits, ("train=*.tar", "train=a.tar", "train=x/y", "train=", "train", "train=p[01]")))
    (problem,) = Reading(splits=("train=val", "val=*.tar")).problems()
    assert problem.field == "data.splits"


def test_an_index_is_of_tars_as_they_lie(folder: Path, tmp_path: Path) -> None:
    said = ["--data.splits", "train=train+val"]
    assert "which is for training" in vitrail("shards", "index", folder, *said, code=1).stderr
    pack(tmp_path / "tars" / "train.tar", ("0.jpg", picture(0)), ("0.cls", b"0"))
    with serving(tmp_path / "tars") as server:
        error = vitrail("shards", "show", f"{server.url}/train.tar", *said, "--data.cache", tmp_path, code=1).stderr
        assert "Read each once: vitrail shards index" in error
        assert "train+val" not in error


def test_a_table_shows_the_roles_and_bytes_are_verified_as_they_lie(folder: Path) -> None:
    said = ["--data.splits", "train=train+val", "val=test"]
    shown = json.loads(vitrail("shards", "show", folder, *said, "--json").stdout)
    assert {split: about["samples"] for split, about in shown["splits"].items()} == {"train": 7, "val": 6}
    swapped = json.loads(vitrail("shards", "show", folder, "--data.splits", "train=val", "val=train", "--json").stdout)
    assert {split: about["samples"] for split, about in swapped["splits"].items()} == {"train": 3, "val": 4}
    assert "all 13 samples" in vitrail("shards", "verify", folder, *said, "--processes", 1).stdout
