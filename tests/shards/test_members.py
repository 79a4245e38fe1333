"""What tars hold: members as others pack them, what is taken of them, and what is said of the rest."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.indexing import index_dataset
from shards.labels import Labels
from shards.members import Contents, index_tar
from tests.tars import Member, pack, picture

IMAGE = picture(0)
LABEL = b"0"


def header(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def keys(contents: Contents) -> list[str]:
    return [key.decode() for key in contents.rows["key"].tolist()]


JPG, CLS = ("a.jpg", IMAGE), ("a.cls", LABEL)
LONG = "folder/" * 30 + "n" * 150

# members, keys, what is left alone
PACKED: list[tuple[list[Member], list[str], dict[str, int]]] = [
    ([CLS, JPG], ["a"], {}),
    ([("a.JPEG", IMAGE), ("a.CLS", LABEL)], ["a"], {}),
    ([("a.Tiff", IMAGE), ("a.cls.TXT", LABEL)], ["a"], {}),
    ([JPG, ("b.png", IMAGE), ("c.webp", IMAGE), ("c.cls", LABEL), ("b.cls", LABEL), CLS], ["a", "b", "c"], {}),
    ([("x/a.jpg", IMAGE), ("y/a.jpg", IMAGE), ("x/a.cls", LABEL), ("y/a.cls", LABEL)], ["x/a", "y/a"], {}),
    ([("./a.jpg", IMAGE), ("./a.cls", LABEL)], ["./a"], {}),
    ([(f"{LONG}.jpg", IMAGE), (f"{LONG}.cls", LABEL)], [LONG], {}),
    ([("caf\u00e9.jpg", IMAGE), ("caf\u00e9.cls", LABEL)], ["caf\u00e9"], {}),
    ([header("x", tarfile.DIRTYPE), header("y/", tarfile.DIRTYPE), ("x/a.jpg", IMAGE), ("x/a.cls", LABEL)],
     ["x/a"], {}),
    # keys with dots
    ([("a.b.jpg", IMAGE), ("a.b.cls", LABEL)], ["a.b"], {}),
    ([("x.y/a.b.jpg", IMAGE), ("x.y/a.b.cls", LABEL)], ["x.y/a.b"], {}),
    ([("v1.0_7.jpg", IMAGE), ("v1.0_7.cls", LABEL), ("v1.0_8.jpg", IMAGE), ("v1.0_8.cls", LABEL)],
     ["v1.0_7", "v1.0_8"], {}),
    ([("a.rgb.png", IMAGE), CLS], ["a"], {}),
    ([JPG, ("a.seg.png", IMAGE), CLS], ["a"], {"images beside the sample's own": 1}),
    ([("a.seg.png", IMAGE), CLS, JPG, ("a.depth.png", IMAGE)], ["a"], {"images beside the sample's own": 2}),
    ([JPG, CLS, ("a.b.jpg", IMAGE), ("a.b.cls", LABEL)], ["a", "a.b"], {}),
    # other members
    ([JPG, ("a.json", b"{}"), ("a.txt", b"x"), ("a.npy", b"x"), ("a.pyd", b"x"), ("README", b"x"), CLS], ["a"],
     {".json": 1, ".txt": 1, ".npy": 1, ".pyd": 1, "without an ending": 1}),
    ([JPG, CLS, ("._a.jpg", b"x"), ("x/.DS_Store", b"x"), ("__MACOSX/a.jpg", b"x"), ("x/.jpg", b"x")],
     ["a"], {"hidden": 4}),
    # links and devices
    ([JPG, CLS, header("b.jpg", tarfile.LNKTYPE, "a.jpg"), ("b.cls", LABEL)], ["a"],
     {"links": 1, "images or labels whose other half is a link": 1}),
    ([JPG, CLS, header("b.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("b.cls", LABEL)], ["a"],
     {"links": 1, "images or labels whose other half is a link": 1}),
    ([JPG, CLS, ("b.jpg", IMAGE), header("b.cls", tarfile.SYMTYPE, "a.cls")], ["a"],
     {"links": 1, "images or labels whose other half is a link": 1}),
    ([JPG, CLS, header("b.jpg", tarfile.LNKTYPE, "a.jpg"), header("b.cls", tarfile.LNKTYPE, "a.cls")],
     ["a"], {"links": 2}),
    ([JPG, CLS, header("a.tfrecord", tarfile.SYMTYPE, "../../x")], ["a"], {"links": 1}),
    ([JPG, CLS, header("zero", tarfile.CHRTYPE), header("disk", tarfile.BLKTYPE), header("pipe.jpg", tarfile.FIFOTYPE)],
     ["a"], {"devices and pipes": 3}),
    # names that lead elsewhere are keys like others: none is ever a path
    ([("../../etc/a.jpg", IMAGE), ("../../etc/a.cls", LABEL)], ["../../etc/a"], {}),
    ([("/etc/a.jpg", IMAGE), ("/etc/a.cls", LABEL)], ["/etc/a"], {}),
    ([("C:\\\\a.jpg", IMAGE), ("C:\\\\a.cls", LABEL)], ["C:\\\\a"], {}),
    ([], [], {}),
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(("members", "expected", "left"), PACKED)
def test_members_are_taken_as_others_pack_them(
    tmp_path: Path, members: list[Member], expected: list[str], left: dict[str, int], form: int
) -> None:
    contents = index_tar(pack(tmp_path / "0.tar", *members, format=form))
    assert (keys(contents), contents.left, contents.odd) == (expected, left, {})
    assert contents.rows["label"].tolist() == [0] * len(expected)
    tar = (tmp_path / "0.tar").read_bytes()
    assert all(tar[row["offset"] :][: row["length"]] == IMAGE for row in contents.rows)


def test_images_and_labels_may_lie_far_apart(tmp_path: Path) -> None:
    images = [(f"x/{number}.jpg", picture(number)) for number in range(40)]
    labels = [(f"x/{number}.cls", str(number).encode()) for number in reversed(range(40))]
    for members in (images + labels, labels + images):
        contents = index_tar(pack(tmp_path / "0.tar", *members))
        assert keys(contents) == [f"x/{number}" for number in range(40)]
        assert contents.rows["label"].tolist() == list(range(40))


@pytest.mark.parametrize(("members", "expected", "left"), [
    ([("n1/a.jpg", IMAGE), ("n1/a.cls", LABEL)], ["n1/a"], {".cls": 1}),
    ([("n1/a.jpg", IMAGE), ("n1/a.seg.png", IMAGE)], ["n1/a"], {"images beside the sample's own": 1}),
    ([("n1/a.b.jpg", IMAGE), ("n1/a.c.jpg", IMAGE)], ["n1/a.b", "n1/a.c"], {}),
    ([("n1/a.jpg", IMAGE), header("n1/b.jpg", tarfile.LNKTYPE, "n1/a.jpg")], ["n1/a"], {"links": 1}),
    ([("n1/._a.jpg", b"x"), ("n1/a.jpg", IMAGE)], ["n1/a"], {"hidden": 1}),
])  # fmt: skip
def test_members_whose_labels_are_folders_are_taken(
    tmp_path: Path, members: list[Member], expected: list[str], left: dict[str, int]
) -> None:
    contents = index_tar(pack(tmp_path / "0.tar", *members), Labels("folder"))
    assert (keys(contents), contents.left) == (expected, left)


@pytest.mark.parametrize(("members", "words"), [
    ([("a.left.jpg", IMAGE), ("a.right.jpg", IMAGE), CLS],
     "'a' has a label and 2 images ('a.left', 'a.right'), and nothing says which one is meant. Pack one image a key."),
    ([JPG, ("b.jpg", IMAGE), CLS], "1 samples have no label (cls, cls.txt), the first is 'b'."),
    ([JPG, CLS, ("b.cls", LABEL)], "1 samples have no image (jpg, "),
    ([JPG, CLS, ("b.jpg", IMAGE), ("b.json", b"{}")], "the first is 'b'. What else lies there: 1 .json."),
    ([JPG, CLS, ("a.png", IMAGE)], "'a' has more than one image; give every sample its own key."),
    ([JPG, CLS, ("a.CLS", LABEL)], "'a' has more than one label; give every sample its own key."),
    ([JPG, CLS, ("a.cls.txt", LABEL)], "'a' has more than one label; give every sample its own key."),
    ([JPG, ("a.cls", b"one")], "'a.cls' holds no class number but 'one'."),
    ([("x\x1b[31m.jpg", IMAGE)], "1 samples have no label"),
])  # fmt: skip
def test_members_that_are_no_samples_are_refused_by_file_and_name(
    tmp_path: Path, members: list[Member], words: str
) -> None:
    tar = pack(tmp_path / "0.tar", *members)
    with pytest.raises(ShardError, match=f"^{re.escape(str(tar))}: .*{re.escape(words)}"):
        index_tar(tar)


def test_what_is_left_alone_is_said_of_all_tars(tmp_path: Path) -> None:
    for number in range(2):
        members = [(f"{number}.jpg", picture(number)), (f"{number}.cls", LABEL), (f"{number}.json", b"{}")]
        pack(tmp_path / f"train/{number}.tar", *members, header("x.jpg", tarfile.LNKTYPE, "0.jpg"))
    assert "Left alone in the tars: 2 .json, 2 links." in index_dataset(tmp_path, 1).head().get("notes", [])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "kind", "words"), [
    ("a.jpg", tarfile.REGTYPE, "10,000,000,000 bytes, more than the 67,108,864 of an image"),
    ("a.cls", tarfile.REGTYPE, "10,000,000,000 bytes, more than the 64 of a label"),
    ("a.cls.txt", tarfile.REGTYPE, "10,000,000,000 bytes, more than the 64 of a label"),
    ("a.npy", tarfile.REGTYPE, "cut off in 'a.npy'"),
    ("././@LongLink", tarfile.GNUTYPE_LONGNAME, "0.tar"),
    ("pax", tarfile.XHDTYPE, "0.tar"),
])  # fmt: skip
@pytest.mark.parametrize("there", [False, True])
def test_a_member_that_claims_10_gb_is_not_read(
    tmp_path: Path, name: str, kind: bytes, words: str, there: bool
) -> None:
    tar = tmp_path / "0.tar"
    size = 10 * 10**9
    with tar.open("wb") as file:
        file.write(header(name, kind, size=size).tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**20 + (size if there else 0))  # of holes
    if there and name == "a.npy":
        assert index_tar(tar).left == {".npy": 1}
        return
    with pytest.raises(ShardError, match=f"{words}|cut off in") as caught:
        index_tar(tar)
    assert str(tar) in str(caught.value)


def test_a_name_of_a_class_may_be_longer_than_a_number(tmp_path: Path) -> None:
    name = b"great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"
    contents = index_tar(pack(tmp_path / "0.tar", JPG, ("a.txt", name)), Labels("txt"))
    assert contents.names == (name.decode(),)
    with pytest.raises(ShardError, match=r"'a.txt' has 5,000 bytes, more than the 1,024 of a label"):
        index_tar(pack(tmp_path / "0.tar", JPG, ("a.txt", b"x" * 5000)), Labels("txt"))


def test_a_key_that_no_utf8_holds_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name, content in (("caf\u00e9.jpg", IMAGE), ("caf\u00e9.cls", LABEL)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    with pytest.raises(ShardError, match=r"0.tar: the key 'caf\\udce9' is not UTF-8"):
        index_tar(tar)
