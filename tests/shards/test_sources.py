"""Odd sources: what is a split and a class, which files are taken, and what is refused with a way on."""

import errno
import json
import os
import resource
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.arrange import Allowed, arrange
from shards.build import build
from shards.dataset import HEAD, Dataset
from shards.decode import MAX_BYTES
from shards.errors import SourceError
from shards.sources import MAX_VISITS, Folder, Zip, open_source
from tests.running import vitrail


def images(folder: Path, count: int = 4, ending: str = "jpg") -> Path:
    """Make so many small pictures, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        seed = sum(folder.name.encode()) * 1000 + number
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{ending}")
    return folder


def classes(root: Path, *names: str, count: int = 4) -> Path:
    """Make class folders."""
    for name in names:
        images(root / name, count)
    return root


def built(source: Path, holdout: float = 0.0, chosen: tuple[str, ...] = (), **allowed: bool) -> Dataset:
    """Return the data set of a source, built beside it."""
    dataset = build(
        str(source),
        source.with_name("out"),
        samples_per_shard=100,
        holdout=holdout,
        processes=1,
        classes=chosen,
        allowed=Allowed(**allowed),
    )
    assert dataset
    return dataset


def said(dataset: Dataset) -> list[str]:
    """Return the notes of dataset.json."""
    notes: list[str] = json.loads((dataset.folder / HEAD).read_text())["notes"]
    return notes


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: len(index) for name, index in dataset.splits.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Training", "validation", "Testing"),
        ("TRAIN", "dev", "eval"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    for split in (train, val, test):
        classes(tmp_path / "photos" / split, "cat", "dog")
    dataset = built(tmp_path / "photos")
    assert dataset.classes == ("cat", "dog")
    assert sizes(dataset) == {"test": 8, "train": 8, "val": 8}


def test_a_folder_beside_the_splits_is_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    for split in ("train", "val"):
        classes(tmp_path / "photos" / split, "cat", "dog")
    images(tmp_path / "photos" / "readme_figures" / "a", 1)
    with pytest.raises(SourceError, match=r"'train', 'val' are splits, but 'readme_figures' .*--allow-strays"):
        built(tmp_path / "photos")
    dataset = built(tmp_path / "photos", allow_strays=True)
    assert dataset.classes == ("cat", "dog")
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert (source["files"], source["taken"], source["not_taken"]) == (17, 16, {"beside the splits": 1})


def test_an_image_that_lies_in_a_split_does_not_make_the_split_a_class(tmp_path: Path) -> None:
    for split in ("train", "val"):
        classes(tmp_path / "photos" / split, "cat", "dog")
    images(tmp_path / "photos" / "train", 2)
    images(tmp_path / "photos" / "test", 3)  # without labels
    with pytest.raises(SourceError) as caught:
        built(tmp_path / "photos")
    assert "2 images lie in train/, in no class folder of it, e.g. train/000.jpg. Move them" in str(caught.value)
    assert "3 images lie in test/, in no class folder of it, e.g. test/000.jpg." in str(caught.value)
    assert str(caught.value).count("--allow-strays") == 2
    dataset = built(tmp_path / "photos", allow_strays=True)
    assert (dataset.classes, sizes(dataset)) == (("cat", "dog"), {"train": 8, "val": 8})
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert (source["files"], source["taken"], source["not_taken"]) == (21, 16, {"in no class folder": 5})


@pytest.mark.parametrize("splits", [("train", "val"), ("",)], ids=["splits", "classes"])
def test_an_image_in_the_source_itself_is_said_in_words(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        classes(tmp_path / "photos" / split, "cat", "dog")
    images(tmp_path / "photos", 1)
    with pytest.raises(
        SourceError, match=r"1 images lie in the folder itself, in no class .*, e\.g\. 000\.jpg"
    ) as caught:
        built(tmp_path / "photos")
    assert "''" not in str(caught.value)
    dataset = built(tmp_path / "photos", allow_strays=True)
    assert dataset.classes == ("cat", "dog")
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert source["not_taken"] == {"in no class folder": 1}


def test_of_images_in_no_class_folder_alone_nothing_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no images in it \(4 files: .*4 in no class folder"):
        built(images(tmp_path / "photos"), allow_strays=True)


@pytest.mark.parametrize("outer", [("fold1", "fold2"), ("a", "b"), ("2019", "2020")])
def test_folders_that_hold_the_same_folders_are_not_taken_for_classes(tmp_path: Path, outer: tuple[str, str]) -> None:
    for name in outer:
        classes(tmp_path / "photos" / name, "cat", "dog")
    with pytest.raises(SourceError, match=rf"'{outer[0]}', '{outer[1]}' hold the same folders \('cat', 'dog'\)"):
        built(tmp_path / "photos")
    assert built(tmp_path / "photos", allow_folders_as_classes=True).classes == outer


def test_two_folders_that_hold_the_same_folders_are_noticed_beside_others(tmp_path: Path) -> None:
    for name in ("fold1", "fold2"):
        classes(tmp_path / "photos" / name, "cat", "dog")
    classes(tmp_path / "photos" / "extra", "newt")
    with pytest.raises(SourceError, match=r"'fold1', 'fold2' hold the same folders \('cat', 'dog'\)"):
        built(tmp_path / "photos")


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        classes(tmp_path / "photos" / split, "cat", "dog")
    with pytest.raises(SourceError, match="'val', 'valid' are names of one split"):
        built(tmp_path / "photos")


def test_a_class_can_be_called_like_a_split(tmp_path: Path) -> None:
    assert built(classes(tmp_path / "photos", "test", "rest")).classes == ("rest", "test")


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "lost+found"])
def test_hidden_folders_are_no_classes_and_their_files_are_counted(tmp_path: Path, hidden: str) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    images(root / hidden, 1)
    images(root / "cat" / hidden, 2)
    (root / "dog" / "._000.jpg").write_bytes(b"AppleDouble")
    (root / "dog" / "._001.jpg").symlink_to(images(tmp_path / "secret", 1) / "000.jpg")
    (root / hidden / "loop").symlink_to(root)
    dataset = built(root)
    assert dataset.classes == ("cat", "dog")
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert source["not_taken"] == {"hidden": 6}
    assert source["files"] == source["taken"] + 6 == 14


def test_every_file_is_taken_or_counted_with_its_reason(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    for name in ("labels.csv", "cat/Thumbs.db", "cat/notes", "dog/a.xyz", "dog/b.XYZ"):
        (root / name).write_text("x")
    (root / "cat" / "empty.jpg").touch()
    os.symlink("/nowhere/z.jpg", root / "cat" / "z.jpg")
    os.symlink("/nowhere/bird", root / "bird")
    os.symlink("itself.jpg", root / "cat" / "itself.jpg")
    os.symlink("/etc/passwd", root / "cat" / "passwd.csv")
    os.mkfifo(root / "dog" / "pipe.jpg")
    dataset = built(root)
    source = json.loads((dataset.folder / HEAD).read_text())["source"]
    assert source["not_taken"] == {
        ".csv": 2, ".db": 1, ".xyz": 2, "without an ending": 1,
        "empty": 1, "links to nothing": 3, "no regular files": 1,
    }  # fmt: skip
    assert source["files"] == source["taken"] + 11 == 19
    printed = vitrail("shards", "show", dataset.folder).stdout
    assert "19 files: 8 taken; not taken: " in printed
    assert "2 .xyz (dog/a.xyz)" in printed
    assert json.loads(vitrail("shards", "show", dataset.folder, "--json").stdout)["source"] == source


@pytest.mark.parametrize("ending", ["bmp", "tif", "jfif", "JPEG", "gif", "ppm", "PNG"])
def test_the_endings_that_pillow_reads_are_taken(tmp_path: Path, ending: str) -> None:
    root = classes(tmp_path / "photos", "cat")
    images(root / "bird", 3, "png")
    for path in (root / "bird").iterdir():
        path.rename(path.with_suffix(f".{ending}"))
    assert sizes(built(root)) == {"train": 7}


@pytest.mark.parametrize("how", ["no file", "files of other kinds", "a file that is empty"])
def test_a_class_that_comes_out_empty_is_refused(tmp_path: Path, how: str) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    (root / "bird").mkdir()
    if how == "files of other kinds":
        (root / "bird" / "a.heic").write_bytes(b"x")
    if how == "a file that is empty":
        (root / "bird" / "a.jpg").touch()
    with pytest.raises(SourceError, match=r"no image that is taken: 'bird'.*--allow-empty-classes"):
        built(root)
    assert built(root, allow_empty_classes=True).classes == ("bird", "cat", "dog")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat")
    images(tmp_path / "elsewhere" / "bird")
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    (root / "cat" / "again.jpg").symlink_to(root / "cat" / "000.jpg")
    dataset = built(root)
    assert dataset.classes == ("bird", "cat")
    assert sizes(dataset) == {"train": 9}


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    (root / "cat" / "loop").symlink_to(root)
    with pytest.raises(SourceError, match=r"loop.*a link to a folder that it lies in"):
        built(root)


@pytest.mark.timeout(300)
def test_links_that_branch_are_followed_so_often_and_no_more(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    levels = [tmp_path / "levels" / str(number) for number in range(30)]
    for level, below in zip(levels, [*levels[1:], images(tmp_path / "levels" / "end", 1)], strict=True):
        level.mkdir()
        for name in ("left", "right"):
            (level / name).symlink_to(below)
    (root / "cat" / "branches").symlink_to(levels[0])
    folder = Folder(root, Allowed())
    assert folder.account.taken == 8 + MAX_VISITS
    assert folder.account.not_taken.keys() == {f"folders that links lead to over {MAX_VISITS} times"}


def test_a_link_to_a_file_outside_is_not_packed_unless_it_is_meant(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    secret = images(tmp_path / "secret", 1) / "000.jpg"
    (root / "cat" / "z.jpg").symlink_to(secret)
    with pytest.raises(SourceError, match=r"z\.jpg: a link to .*secret.*--allow-links"):
        built(root)
    assert sizes(built(root, allow_links=True)) == {"train": 9}


def test_a_folder_that_cannot_be_listed_is_refused_unless_it_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes(tmp_path / "photos", "cat", "dog", "lost+found")
    scandir = os.scandir

    def locked(name: str) -> Callable[[Path], Any]:
        def scan(folder: Path) -> Any:
            if folder.name == name:
                raise PermissionError(errno.EACCES, "Permission denied")
            return scandir(folder)

        return scan

    monkeypatch.setattr(os, "scandir", locked("dog"))
    with pytest.raises(SourceError, match="dog: cannot be listed"):
        Folder(root, Allowed())
    monkeypatch.setattr(os, "scandir", locked("lost+found"))
    assert Folder(root, Allowed()).account.not_taken == {"hidden": 1}


def test_a_file_that_grows_beyond_the_bound_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    folder = Folder(classes(tmp_path / "photos", "cat", "dog"), Allowed())
    with (tmp_path / "photos/cat/000.jpg").open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(SourceError, match=r"cat/000\.jpg: grew to over 67,108,864 bytes"):
        folder.images.read("cat/000.jpg")


@pytest.mark.parametrize(
    ("names", "flag"),
    [
        (("cat",), "one_class"),
        (("cat", "Cat"), "similar_classes"),
        (("dog ", "dog"), "similar_classes"),
        (("caf\u00e9", "cafe\u0301"), "similar_classes"),
    ],
    ids=["one", "case", "space", "Unicode"],
)
def test_names_of_classes_that_look_wrong_are_refused_unless_they_are_meant(
    tmp_path: Path, names: tuple[str, ...], flag: str
) -> None:
    root = classes(tmp_path / "photos", *names)
    with pytest.raises(SourceError, match=f"--allow-{flag.replace('_', '-')}"):
        built(root)
    assert built(root, **{f"allow_{flag}": True}).classes == tuple(sorted(names))


def test_classes_that_differ_between_splits_are_refused_unless_they_are_meant(tmp_path: Path) -> None:
    classes(tmp_path / "photos" / "train", "cat", "dog")
    classes(tmp_path / "photos" / "val", "cat", "newt")
    with pytest.raises(SourceError) as caught:
        built(tmp_path / "photos")
    assert "train has no image of 'newt'" in str(caught.value)
    assert "val has no image of 'dog'" in str(caught.value)
    assert len(built(tmp_path / "photos", allow_different_classes=True).classes) == 3


def test_a_chosen_class_that_a_split_lacks_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "photos" / "train", "cat", "dog")
    classes(tmp_path / "photos" / "val", "cat")
    chosen = built(tmp_path / "photos", chosen=("cat",), allow_one_class=True)
    assert json.loads((chosen.folder / HEAD).read_text())["source"]["not_taken"] == {"of other classes": 4}
    with pytest.raises(SourceError, match="val has no image of 'dog'"):
        open_source(str(tmp_path / "photos"), ("dog",), Allowed(allow_one_class=True))


def test_folders_that_are_numbers_are_said_to_be_out_of_order(tmp_path: Path) -> None:
    dataset = built(classes(tmp_path / "photos", "0", "2", "10"))
    assert dataset.classes == ("0", "10", "2")
    assert any("in the order of the alphabet: 10 is class 1" in note for note in said(dataset))


def test_the_same_image_in_two_splits_or_two_classes_is_said(tmp_path: Path) -> None:
    for split in ("train", "val"):
        classes(tmp_path / "photos" / split, "cat", "dog")
    (tmp_path / "photos" / "train" / "dog" / "x.jpg").write_bytes(
        (tmp_path / "photos" / "train" / "cat" / "000.jpg").read_bytes()
    )
    notes = said(built(tmp_path / "photos"))
    assert "8 images of val are in train too, byte for byte." in notes
    assert any("images have two labels" in note for note in notes)


def test_what_lies_under_an_images_name_and_is_none_is_said(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    (root / "cat" / "x.jpg").write_text("version https://git-lfs.github.com/spec/v1\n")
    (root / "dog" / "y.png").write_text("<html>404</html>")
    notes = said(built(root))
    assert any("1 images are a pointer of Git LFS" in note and "cat/x" in note for note in notes)
    assert any("1 images are an HTML page" in note and "dog/y" in note for note in notes)


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.5, 1), (7, 0.2, 1), (10, 0.1, 1), (10, 0.25, 2)])
def test_a_holdout_takes_its_share_of_every_class(tmp_path: Path, count: int, share: float, held: int) -> None:
    dataset = built(classes(tmp_path / "photos", *"abcdef", count=count), holdout=share)
    of_val, of_train = (np.bincount(dataset.splits[split].rows["label"], minlength=6) for split in ("val", "train"))
    assert of_val.sum() == round(6 * count * share)
    assert of_val.min() >= held
    assert (of_val + of_train == count).all()
    assert of_train.min() > 0


def test_a_class_of_one_image_keeps_it(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog", count=5)
    images(root / "newt", 1)
    dataset = built(root, holdout=0.4)
    assert 2 in dataset.splits["train"].rows["label"]
    assert any("1 classes have one image: 'newt'" in note for note in said(dataset))


def test_nothing_can_be_held_out_of_one_image(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--holdout 0.1: a class of one image keeps it"):
        built(images(tmp_path / "photos" / "a", 1).parent, holdout=0.1, allow_one_class=True)


def test_an_output_inside_the_source_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    with pytest.raises(SourceError, match="lies in the source"):
        build(str(root), root / "shards", samples_per_shard=9, holdout=0, processes=1)
    assert not (root / "shards").exists()


def test_an_output_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(SourceError, match="holds something else already"):
        built(root)


def zipped(path: Path, root: Path, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> Path:
    """Make a zip of a folder's images."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.jpg")):
            info = zipfile.ZipInfo(file.relative_to(root).as_posix())
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, file.read_bytes())
    return path


def renamed(prefix: str) -> Callable[[zipfile.ZipInfo], None]:
    def change(info: zipfile.ZipInfo) -> None:
        info.filename = prefix + info.filename

    return change


def test_dots_and_double_slashes_in_a_zip_are_no_other_names(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    dataset = built(zipped(tmp_path / "photos.zip", root, renamed("./photos//")))
    assert dataset.classes == ("cat", "dog")
    assert sizes(dataset) == {"train": 8}


@pytest.mark.parametrize("prefix", ["/", "../", "a/../../", "C:\\"])
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path: Path, prefix: str) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    with pytest.raises(SourceError, match="leads out of it"):
        built(zipped(tmp_path / "photos.zip", root, renamed(prefix)))


def test_a_zip_that_unpacks_to_thousands_of_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"cat/{number}.jpg", bytes(30_000_000))
    with pytest.raises(SourceError, match="that unpack to 300,000,000, which images do not"):
        built(tmp_path / "bomb.zip")


def test_a_link_in_a_zip_is_not_packed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", classes(tmp_path / "photos", "cat", "dog"))
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("cat/link.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    source = json.loads((built(path).folder / HEAD).read_text())["source"]
    assert source["not_taken"] == {"links": 1}


def sealed(content: bytearray) -> None:
    """Set the bit of encryption in all of a zip's directory."""
    for at in (i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"):
        content[at + 8] |= 1


def deflate64(content: bytearray) -> None:
    """Say Deflate64 in all of a zip's directory, as Windows does above 2 GB."""
    for at in (i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"):
        content[at + 10] = 9


def torn(content: bytearray) -> None:
    """Change the bytes of the first member."""
    content[60:70] = bytes(10)


def cut(content: bytearray) -> None:
    """Leave out the end."""
    del content[len(content) // 2 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (sealed, "are encrypted"),
        (deflate64, "Deflate64.*Unpack it"),
        (torn, "cannot be unpacked"),
        (cut, "begins as a zip.*cut off"),
    ],
)
def test_a_zip_that_cannot_be_read_is_explained(
    tmp_path: Path, damage: Callable[[bytearray], None], words: str
) -> None:
    path = zipped(tmp_path / "photos.zip", classes(tmp_path / "photos", "cat", "dog"))
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words):
        built(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_of_any_compression_that_is_damaged_is_named(tmp_path: Path, method: int) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.compress_type = method

    path = zipped(tmp_path / "photos.zip", classes(tmp_path / "photos", "cat", "dog"), change)
    whole = path.read_bytes()
    for at in range(30 + len("cat/000.jpg"), 300, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF] * 3) + whole[at + 3 :])
        with pytest.raises(SourceError, match=r"photos\.zip: cat/000\.jpg cannot be unpacked"):
            Zip(path, Allowed()).images.read("cat/000.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_member_that_says_too_small_a_size_takes_no_memory(tmp_path: Path, method: int) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("cat/0.jpg", "w") as file:
        for _ in range(200):
            file.write(bytes(2**20))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=r"cat/0\.jpg cannot be unpacked"):
        Zip(path, Allowed()).images.read("cat/0.jpg")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_member_that_turns_out_encrypted_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", classes(tmp_path / "photos", "cat", "dog"))
    opened = Zip(path, Allowed())
    opened.images.zip.getinfo("cat/000.jpg").flag_bits |= 1
    with pytest.raises(SourceError, match=r"cat/000\.jpg cannot be unpacked .*encrypted"):
        opened.images.read("cat/000.jpg")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"\x1f\x8b", "gzip"),
        (bytes(257) + b"ustar", "a tar"),
    ],
)
def test_a_source_that_is_no_zip_is_called_what_it_is(tmp_path: Path, start: bytes, words: str) -> None:
    (tmp_path / "photos.zip").write_bytes(start + bytes(600))
    with pytest.raises(SourceError, match=words):
        built(tmp_path / "photos.zip")


def test_a_fifo_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos.zip")
    with pytest.raises(SourceError, match="neither a folder nor a zip"):
        built(tmp_path / "photos.zip")


def test_a_name_that_is_not_utf8_is_found_before_anything_is_written(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog")
    os.rename(root / "cat" / "000.jpg", os.fsencode(root / "cat") + b"/caf\xe9.jpg")
    with pytest.raises(SourceError, match="is not UTF-8; rename it"):
        built(root)
    assert not (tmp_path / "out").exists()


def test_a_source_is_judged_by_names_alone(tmp_path: Path) -> None:
    folder = Folder(classes(tmp_path / "photos", "cat", "dog"), Allowed())
    assert folder.account.files == folder.account.taken == 8
    with pytest.raises(SourceError, match="no images in it"):
        arrange([], [], "nothing", Allowed())
