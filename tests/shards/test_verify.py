import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.build import build
from shards.dataset import Dataset
from shards.indexing import index_dataset
from shards.oddities import TURNED, oddities
from shards.open import Opener, Reading
from shards.pack import Sample, pack
from shards.verify import EXAMPLES, Some, verify
from tests.http_server import serving
from tests.running import vitrail


def encoded(
    shade: int = 0, mode: str = "RGB", size: tuple[int, int] = (40, 40), kind: str = "PNG", **options: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, shade).save(buffer, format=kind, **options)
    return buffer.getvalue()


def indexed(folder: Path, *tars: list[Sample], split: str = "train") -> Dataset:
    """Pack tars of a split, and return the data set of all that lie in a folder."""
    (folder / split).mkdir(parents=True)
    for number, samples in enumerate(tars):
        with (folder / split / f"{number:06d}.tar").open("wb") as file:
            pack(file, samples)
    return index_dataset(folder, 1)


def samples(*labels: int, first: int = 0) -> list[Sample]:
    return [Sample(f"{i:04d}", label, encoded(i), "png") for i, label in enumerate(labels, first)]


def test_equal_images_are_counted_within_a_split_and_across_splits(tmp_path: Path) -> None:
    one, two, three = samples(0, 1, 0)
    again = Sample("0100", 0, one.content, "png")
    indexed(tmp_path, [one, two], [again, three])
    dataset = indexed(tmp_path, [two._replace(key="0200", label=0), *samples(1, first=50)], split="val")
    report = verify(dataset.splits, dataset.classes)
    assert report.problems == []
    assert report.samples == 6
    assert report.splits["train"].same_bytes == Some(1, ["0100 = 0000"])
    assert report.splits["val"].same_bytes == Some()
    (pair,) = report.pairs
    assert pair.splits == ("train", "val")
    assert pair.same_bytes == Some(1, ["0200 = 0001"])
    assert pair.same_keys == Some()
    assert report.two_labels.count == 1


def test_a_key_that_occurs_twice_is_a_problem_in_one_split_alone(tmp_path: Path) -> None:
    indexed(tmp_path, samples(0, 1), samples(0, first=1))
    dataset = indexed(tmp_path, samples(0, 1), split="val")
    report = verify(dataset.splits, dataset.classes)
    (problem,) = report.problems
    assert "1 samples of train have the key of another one: '0001'" in problem
    assert report.pairs[0].same_keys == Some(2, ["0000", "0001"])


def test_classes_are_weighed(tmp_path: Path) -> None:
    indexed(tmp_path, samples(0, 0, 0, 0, 0, 1, 1, 2))
    dataset = indexed(tmp_path, samples(0, 2, first=20), split="val")
    report = verify(dataset.splits, ("cat", "dog", "newt"))
    train, val = report.splits["train"], report.splits["val"]
    assert (train.smallest_class, train.largest_class, train.ratio) == (1, 5, 5.0)
    assert train.empty_classes == Some()
    assert val.empty_classes == Some(1, ["dog"])
    assert (val.smallest_class, val.largest_class) == (1, 1)


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(kind=kind, exif=exif)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (encoded(), []),
        (encoded(mode="L"), []),
        (encoded(mode="I;16"), ["16 bits a channel"]),
        (encoded(mode="I;16", kind="TIFF"), ["16 bits a channel"]),
        (encoded(mode="CMYK", kind="JPEG"), ["CMYK"]),
        (encoded(mode="P"), ["palette"]),
        (encoded(mode="RGBA"), ["alpha (left out)"]),
        (encoded(mode="P", transparency=0), ["palette", "alpha (left out)"]),
        (turned("JPEG"), [TURNED]),
        (turned("WEBP"), [TURNED]),
        (turned("PNG"), [TURNED]),
        (turned("TIFF"), [TURNED]),
        (encoded(size=(31, 40)), ["a side under 32 pixels"]),
        (encoded(size=(40, 161)), ["over 4 times as long as wide"]),
        (
            encoded(kind="WEBP", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")]),
            ["several frames (the first is taken)"],
        ),
    ],
)
def test_what_is_unusual_about_an_image(content: bytes, what: list[str]) -> None:
    assert oddities(content) == what


def test_exif_that_is_cut_off_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for cut in range(len(exif.tobytes())):
        assert TURNED not in oddities(encoded(kind="WEBP", exif=exif.tobytes()[:cut])) or cut >= 26


def test_unusual_images_are_counted_and_only_some_are_named(tmp_path: Path) -> None:
    tars = [
        [Sample(f"{tar}{i}", 0, encoded(tar * 10 + i, mode="RGBA", size=(20, 40)), "png") for i in range(4)]
        for tar in range(3)
    ]
    dataset = indexed(tmp_path, *tars)
    (tmp_path / "train" / "000001.tar").unlink()
    report = verify(dataset.splits)
    assert len(report.problems) == 1
    assert report.splits["train"].unusual == {
        name: Some(8, ["00", "01", "02", "03"]) for name in ("alpha (left out)", "a side under 32 pixels")
    }
    assert EXAMPLES == 4


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_data_behind_a_url_is_verified_through_the_cache(tmp_path: Path, processes: int) -> None:
    folder = indexed(
        tmp_path / "data", samples(0, 1, 0), *(samples(1, 0, first=2 * tar + 1) for tar in (1, 2, 3))
    ).folder
    with (folder / "train" / "000001.tar").open("r+b") as file:
        file.seek(1540)
        file.write(b"\xff\xff")
    (folder / "train" / "000002.tar").unlink()
    with (folder / "train" / "000003.tar").open("r+b") as file:
        file.write(b"\xff" * 512)
    with serving(folder) as server:
        reading = Reading(cache=str(tmp_path / "cache"), cache_limit="1GB")
        dataset = Opener(reading, lambda _: None, processes=1).open(server.url)
        undecodable, differs, missing, torn = verify(dataset.splits, dataset.classes, processes).problems
    assert f"{server.url}/train/000001.tar: sample '0003': PNG" in undecodable
    assert f"{server.url}/train/000001.tar: sample '0003' at byte 1536 has crc32" in differs
    assert f"{server.url}/train/000002.tar" in missing
    assert f"{server.url}/train/000003.tar: " in torn


@pytest.mark.dist
def test_any_number_of_processes_reports_the_same(tmp_path: Path) -> None:
    dataset = build("digits", tmp_path / "digits", samples_per_shard=200, holdout=0.0, processes=1)
    with (dataset.folder / "test" / "000001.tar").open("r+b") as file:
        file.seek(1600)
        file.write(b"\xff\xff")
    one, two = (verify(dataset.splits, dataset.classes, processes) for processes in (1, 2))
    assert one == two
    assert one.problems


def test_the_command_tells_all_and_fails_for_problems_alone(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(900)
    dataset = indexed(tmp_path / "data", [*samples(0, 1, 1), Sample("a[red]b", 0, encoded(0, mode="RGBA"), "png")])
    said = vitrail("shards", "verify", dataset.folder, "--processes", 1).stdout
    assert "alpha (left out)" in said
    assert "a[red]b" in said
    assert "all 4 samples are as the index says" in said
    report = json.loads(vitrail("shards", "verify", dataset.folder, "--json", "--processes", 1).stdout)
    assert report["splits"]["train"]["unusual"]["alpha (left out)"] == {"count": 1, "examples": ["a[red]b"]}
    assert (report["samples"], report["problems"], report["pairs"]) == (4, [], [])
    damaged = indexed(tmp_path / "other", [*samples(0, 1), Sample("x", 0, b"\x89PNG" + content, "png")])
    report = json.loads(vitrail("shards", "verify", damaged.folder, "--json", "--processes", 1, code=1).stdout)
    (problem,) = report["problems"]
    assert "sample 'x': PNG" in problem
