import gc
import io
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.build import build
from shards.dataset import read_dataset
from shards.errors import ShardError, SourceError
from shards.indexing import index_dataset
from shards.reader import Reader
from shards.verify import verify

OPTIONS = {"samples_per_shard": 5, "holdout": 0.0, "processes": 1}


def make_folder(root: Path, splits: tuple[str, ...] = ("train/", "test/"), images: int = 7) -> Path:
    for split in splits:
        for number, name in enumerate(("cat", "dog", "newt")):
            folder = root / f"{split}{name}"
            folder.mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (9 + i, 8), (number * 80, i * 9, 50)).save(folder / f"{i:03d}.v1.jpg")
    return root


def tar_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


@pytest.mark.dist
def test_the_same_source_gives_the_same_bytes_on_any_number_of_processes(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    one = build(str(source), tmp_path / "one", **OPTIONS)
    two = build(str(source), tmp_path / "two", **OPTIONS | {"processes": 2})
    assert tar_bytes(one.folder) == tar_bytes(two.folder)
    assert one.splits["train"].fingerprint == two.splits["train"].fingerprint
    assert sorted(path.name for path in two.folder.iterdir()) == ["dataset.json", "test", "train"]


def test_a_zip_gives_what_its_folder_gives(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for path in sorted(source.rglob("*.jpg")):
            archive.write(path, Path("above") / path.relative_to(source))
    from_folder = build(str(source), tmp_path / "folder", **OPTIONS)
    from_zip = build(str(tmp_path / "source.zip"), tmp_path / "zip", **OPTIONS)
    assert from_zip.classes == from_folder.classes == ("cat", "dog", "newt")
    assert tar_bytes(from_zip.folder) == tar_bytes(from_folder.folder)


def test_parts_in_any_order_make_the_same_data_set(tmp_path: Path) -> None:
    source = str(make_folder(tmp_path / "source"))
    whole = build(source, tmp_path / "whole", **OPTIONS)
    for part in (2, 0):
        assert build(source, tmp_path / "parts", **OPTIONS, parts=3, part=part) is None
        assert not (tmp_path / "parts" / "dataset.json").exists()
    last = build(source, tmp_path / "parts", **OPTIONS, parts=3, part=1)
    assert tar_bytes(last.folder) == tar_bytes(whole.folder)
    assert last.splits["train"].fingerprint == whole.splits["train"].fingerprint
    again = build(source, tmp_path / "parts", **OPTIONS, parts=3, part=0)  # a job that its cluster repeats
    assert again.splits["test"].fingerprint == whole.splits["test"].fingerprint


def test_a_part_of_another_build_is_refused_where_a_data_set_lies(tmp_path: Path) -> None:
    source, other = str(make_folder(tmp_path / "source")), tmp_path / "other"
    whole = build(source, tmp_path / "out", **OPTIONS)
    shutil.copytree(source, other)
    next(other.rglob("*.jpg")).unlink()
    before = (whole.folder / "dataset.json").read_bytes()
    for spec, options in ((str(other), {}), (source, {"resize_shorter": 4}), (source, {"classes": ("newt", "cat")})):
        with pytest.raises(SourceError, match="holds a data set already"):
            build(spec, whole.folder, **OPTIONS, **options, parts=2)
    assert (whole.folder / "dataset.json").read_bytes() == before
    (whole.folder / "dataset.json").write_bytes(before[:-9])
    with pytest.raises(SourceError, match=r"torn or altered .* Nobody can say what .* holds\. Remove it"):
        build(source, whole.folder, **OPTIONS, parts=2)


def test_some_classes_of_a_source(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    dataset = build(str(source), tmp_path / "out", **OPTIONS, classes=("newt", "cat"))
    assert dataset.classes == ("newt", "cat")
    index = dataset.splits["test"]
    assert {index.key(i).split("/")[0]: int(index.rows["label"][i]) for i in range(len(index))} == {"newt": 0, "cat": 1}
    reader = Reader(index)
    everything = build(str(source), tmp_path / "all", **OPTIONS).splits["test"]
    of_all = {everything.key(i): Reader(everything).read(i) for i in range(len(everything))}
    assert all(reader.read(i) == of_all[index.key(i)] for i in range(len(index)))
    for wrong, message in ((("cat", "bird"), "no class 'bird'"), (("cat", "cat"), "named twice")):
        with pytest.raises(SourceError, match=message):
            build(str(source), tmp_path / "wrong", **OPTIONS, classes=wrong)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_every_sample_that_the_index_names(tmp_path: Path) -> None:
    dataset = build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS)
    index = dataset.splits["train"]
    reader = Reader(index)
    expected = {index.key(i): (reader.read(i), index.rows["label"][i]) for i in range(len(index))}
    tars = [str(path) for path in sorted((tmp_path / "out" / "train").glob("*.tar"))]
    found = {s["__key__"]: (s["jpg"], int(s["cls"])) for s in webdataset.WebDataset(tars, shardshuffle=False)}
    gc.collect()  # webdataset leaves its files to the collector, which warns of them
    assert len(found) == 21
    assert found == expected


def test_no_shard_holds_one_class_alone(tmp_path: Path) -> None:
    index = build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS).splits["train"]
    for first, last in zip(index.starts[:-1], index.starts[1:], strict=True):
        assert last - first == 1 or len(set(index.rows["label"][first:last])) > 1


def test_digits_are_the_1437_and_360_of_the_demo(tmp_path: Path) -> None:
    dataset = build("digits", tmp_path / "out", samples_per_shard=1000, holdout=0, processes=1)
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 1437, "test": 360}
    image = Image.open(io.BytesIO(Reader(dataset.splits["test"]).read(0)))
    assert (image.size, image.mode) == ((8, 8), "L")


def test_a_source_without_splits_can_have_a_part_held_out(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", splits=("",))
    dataset = build(str(source), tmp_path / "out", **OPTIONS | {"holdout": 0.2})
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 17, "val": 4}


def test_a_torchvision_set_is_built_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Toy:
        classes = ("a", "b")

        def __init__(self, root: Path, train: bool) -> None:
            self.targets = [0, 1, 1] if train else [1, 0]

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.new("L", (5, 5), 10 * i), self.targets[i]

    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    from shards.sources import open_source

    source = open_source("torchvision:Toy")
    assert source.items["train"] == [("0000000", 0), ("0000001", 1), ("0000002", 1)]
    content, extension = source.images.read(source.places["train"][2])
    assert extension == "png"
    assert np.array(Image.open(io.BytesIO(content)))[0, 0].tolist() == [20, 20, 20]


def test_a_torchvision_set_without_our_splits_says_which_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Letters:
        def __init__(self, root: Path, split: str) -> None:
            raise ValueError(f"Unknown value {split!r} for argument split. Valid values are ('letters', 'mnist').")

    monkeypatch.setattr(torchvision.datasets, "Letters", Letters, raising=False)
    with pytest.raises(SourceError, match="Letters has no split train, val, test, but 'letters', 'mnist'"):
        build("torchvision:Letters", Path("never"), **OPTIONS)


@pytest.mark.parametrize(
    ("has", "taken", "left"),
    [
        (("train", "valid", "test"), {"train": "train", "val": "valid", "test": "test"}, ""),
        (("trainval", "test"), {"train": "trainval", "test": "test"}, ""),
        (("train", "val", "trainval", "test"), {"train": "train", "val": "val", "test": "test"}, "'trainval'"),
        (("train-standard", "train-challenge", "val"), {"train": "train-standard", "val": "val"}, "'train-challenge'"),
        (("train", "extra", "test"), {"train": "train"}, "'extra', 'test'"),
    ],
)
def test_the_splits_of_a_torchvision_set_are_known_by_its_spellings(
    monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], taken: dict[str, str], left: str
) -> None:
    import torchvision.datasets
    from torchvision.datasets.utils import verify_str_arg

    from shards.sources import Torchvision

    class Toy:
        def __init__(self, root: Path, split: str) -> None:
            self.split = verify_str_arg(split, "split", has)
            self.targets = [None] if split == "test" and "extra" in has else [0, 1]

    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    source = Torchvision("Toy", Path("never"))
    assert {split: images.split for split, images in source.images.sets.items()} == taken
    assert source.account.notes == ([f"torchvision's Toy has splits that were not taken: {left}."] if left else [])


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("Country211", {"train", "valid", "test"}),
        ("FGVCAircraft", {"train", "val", "trainval", "test"}),
        ("OxfordIIITPet", {"trainval", "test"}),
        ("Places365", {"train-standard", "train-challenge", "val", "test"}),
        ("STL10", {"train", "test", "unlabeled", "train+unlabeled"}),
    ],
)
def test_torchvision_says_which_splits_a_set_has_without_fetching_it(
    tmp_path: Path, name: str, splits: set[str]
) -> None:
    import torchvision.datasets

    from shards.sources import splits_of_torchvision

    assert splits_of_torchvision(getattr(torchvision.datasets, name), tmp_path) == splits
    with pytest.raises(SourceError, match=r"CelebA does not say which splits it has"):
        splits_of_torchvision(torchvision.datasets.CelebA, tmp_path)


def test_an_interrupted_build_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    whole = build(str(source), tmp_path / "whole", **OPTIONS)
    half = tmp_path / "half"
    assert build(str(source), half, **OPTIONS, parts=2) is None
    kept = next(half.rglob("*.tar"))
    before = kept.stat().st_mtime_ns
    ours, of_a_process_that_runs = (
        half / "train" / f".000001.tar.{platform.node()}.{process}.tmp" for process in (2**22 + 1, os.getpid())
    )
    for path in (ours, of_a_process_that_runs):
        path.write_bytes(b"torn")
    build(str(source), half, **OPTIONS)
    assert tar_bytes(half) == tar_bytes(whole.folder)
    assert kept.stat().st_mtime_ns == before
    assert not ours.exists()
    assert of_a_process_that_runs.exists()


def test_what_parts_wrote_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(make_folder(tmp_path / "source"))
    whole = build(source, tmp_path / "whole", **OPTIONS)
    assert not list(whole.folder.rglob("parts"))
    monkeypatch.setattr("shards.build.index_tar", None)
    assert build(source, tmp_path / "parts", **OPTIONS, parts=2, part=1) is None
    last = build(source, tmp_path / "parts", **OPTIONS, parts=2, part=0)
    assert last.splits["train"].fingerprint == whole.splits["train"].fingerprint


def test_a_part_that_begins_while_another_makes_the_folder_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = str(make_folder(tmp_path / "source")), tmp_path / "out"
    iterdir = Path.iterdir
    out.mkdir()

    def meanwhile(folder: Path) -> Iterator[Path]:
        found = list(iterdir(folder))
        if folder == out and not found:
            monkeypatch.undo()
            build(source, out, **OPTIONS, parts=2, part=1)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", meanwhile)
    assert build(source, out, **OPTIONS, parts=2, part=0).splits.keys() == {"train", "test"}


def photographs(root: Path) -> Path:
    """Return a folder of images of two classes, most of which have a shorter side over 20 pixels."""
    make_folder(root, splits=("",), images=1)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 61, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(root / "cat" / "wide.jpg", exif=turned)
    noise.rotate(90, expand=True).convert("P").save(root / "cat" / "tall.png")
    noise.convert("L").save(root / "cat" / "grey.webp")
    content = (root / "cat" / "wide.jpg").read_bytes()
    (root / "dog" / "cut.jpg").write_bytes(content[: len(content) // 2])
    return root


def test_longer_images_are_stored_smaller_and_others_as_they_are(tmp_path: Path) -> None:
    source = photographs(tmp_path / "source")
    dataset = build(str(source), tmp_path / "out", **OPTIONS, resize_shorter=20)
    index = dataset.splits["train"]
    reader = Reader(index)
    held = {index.key(i): reader.read(i) for i in range(len(index))}
    for key, kind, size in (
        ("cat/wide", "JPEG", (30, 20)),
        ("cat/tall", "PNG", (20, 30)),
        ("cat/grey", "JPEG", (30, 20)),
    ):
        image = Image.open(io.BytesIO(held[key]))
        assert (image.format, image.size, image.mode) == (kind, size, "RGB")
        assert not image.getexif()
    wide = Image.open(source / "cat" / "wide.jpg").resize((30, 20), Image.Resampling.BICUBIC)
    stored = Image.open(io.BytesIO(held["cat/wide"]))
    assert stored.layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # 4:4:4
    assert np.abs(np.asarray(wide, dtype=int) - np.asarray(stored)).mean() < 5
    for name in ("dog/cut.jpg", "dog/000.v1.jpg", "newt/000.v1.jpg"):
        assert held[name.removesuffix(".jpg").replace(".", "_")] == (source / name).read_bytes()
    head = read_dataset(tmp_path / "out").head()
    assert head["plan"]["resize_shorter"] == 20
    assert [note for note in head["notes"] if "images" in note and "two labels" not in note] == [
        "3 images were longer on the shorter side than --resize-shorter, and are stored smaller.",
        "1 images of these had an EXIF orientation, which is dropped: they lie as their pixels do, not turned.",
        "1 images are JPEG that is damaged, and cannot be read: 'dog/cut'.",
    ]


def test_a_build_that_goes_on_says_what_was_done_before_and_takes_no_other_size(tmp_path: Path) -> None:
    source = str(photographs(tmp_path / "source"))
    whole = build(source, tmp_path / "whole", **OPTIONS, resize_shorter=20)
    half = tmp_path / "half"
    assert build(source, half, **OPTIONS, resize_shorter=20, parts=2) is None
    for other in (0, 21):
        with pytest.raises(SourceError, match="unfinished build of another source or size"):
            build(source, half, **OPTIONS, resize_shorter=other)
    built = build(source, half, **OPTIONS, resize_shorter=20)
    assert tar_bytes(half) == tar_bytes(whole.folder)
    assert built.head()["notes"] == whole.head()["notes"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{tmp}/nothing", "no such file or folder"),
        ("{tmp}/text", "neither a folder nor a zip"),
        ("{tmp}/empty", "no images"),
        ("torchvision:Nonsense", "torchvision has no data set 'Nonsense'"),
    ],
)
def test_a_source_that_cannot_be_used_is_explained(tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "text").write_text("no images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=words):
        build(spec.format(tmp=tmp_path), tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_finished_data_set_is_not_written_over(tmp_path: Path) -> None:
    build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS)
    with pytest.raises(SourceError, match="holds a data set already"):
        build("digits", tmp_path / "out", **OPTIONS)


@pytest.mark.dist
def test_tars_made_elsewhere_are_indexed_and_not_touched(tmp_path: Path) -> None:
    built = build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS)
    before = tar_bytes(built.folder)
    for path in [built.folder / "dataset.json", *built.folder.rglob("index.*")]:
        path.unlink()
    with pytest.raises(ShardError, match="vitrail shards index"):
        read_dataset(built.folder)
    again = index_dataset(built.folder, processes=2)
    assert again.classes == ("0", "1", "2")
    assert again.splits["train"].fingerprint == built.splits["train"].fingerprint
    assert tar_bytes(built.folder) == before


@pytest.mark.parametrize("cut", [512, 1024, 1300, -1024, -10240])
def test_a_tar_that_is_cut_off_is_never_taken_for_a_whole_one(tmp_path: Path, cut: int) -> None:
    built = build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS)
    tar = built.folder / "train" / "000000.tar"
    content = tar.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    tar.write_bytes(content[: cut if cut > 0 else len(content) + max(cut, -len(content) // 2)])
    with pytest.raises(ShardError, match=r"000000\.tar"):
        index_dataset(built.folder, processes=1)


def test_verify_names_every_sample_whose_bytes_differ(tmp_path: Path) -> None:
    built = build(str(make_folder(tmp_path / "source")), tmp_path / "out", **OPTIONS)
    index = built.splits["train"]
    assert verify({"train": index}).problems == []
    with (built.folder / "train" / "000001.tar").open("r+b") as file:
        file.seek(int(index.rows["offset"][7]) + 20)
        file.write(b"\xff\x00\xff")
    os.truncate(built.folder / "train" / "000002.tar", 700)
    (built.folder / "train" / "000003.tar").unlink()
    problems = verify({"train": index}).problems
    assert any(repr(index.key(7)) in problem and "crc32" in problem for problem in problems)
    assert any("000002.tar: 700 bytes, the index says" in problem for problem in problems)
    assert any("000003.tar: missing" in problem for problem in problems)
    assert not any(repr(index.key(0)) in problem for problem in problems)
