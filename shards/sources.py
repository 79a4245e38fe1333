"""Where images come from: class folders, a zip of them, scikit-learn's digits, torchvision's data sets.

A source lists its splits once; what reads its images travels to the building processes, which list nothing.
"""

import contextlib
import errno
import hashlib
import io
import json
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.arrange import (
    Account,
    Allowed,
    Arranged,
    Items,
    Listed,
    arrange,
    check_classes,
    check_name,
    is_hidden,
    shown,
    why_not,
)
from shards.decode import MAX_BYTES, kind_of
from shards.errors import SourceError
from shards.files import open_regular

MAX_RATIO: Final = 100  # bytes of a zip's members to those of the zip: images hardly shrink, a bomb does by thousands
METHODS: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}  # of compression
# what Python raises for a member of a zip that is damaged, encrypted, or of an unknown compression
UNPACKING: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError, ValueError)
PIECE: Final = 2**12  # bytes at a time: what a member holds beyond the size that it says is cut off after unpacking
SMALL: Final = 2**28  # bytes that a zip may unpack to at any ratio
MAX_VISITS: Final = 100  # to one folder: links that branch lead there by 2^n ways
TORCHVISION_SPLITS: Final[Mapping[str, tuple[str, ...]]] = {  # as its sets spell them; of several the first is taken
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
JPEG_ENDINGS: Final = ("jpeg", "jpe", "jfif")


class Images(Protocol):
    """What reads the images of a source; it can be pickled."""

    def read(self, place: Any) -> tuple[bytes, str]:
        """Return the encoded image of a place, and its extension."""
        ...


class Source(Protocol):
    """Labelled images.  `items[split]` is a list of (key, class number), `places[split]` where `images` reads them."""

    classes: list[str]
    items: Items
    account: Account  # of all its files

    @property
    def places(self) -> Mapping[str, Sequence[Any]]:
        """Where each item lies."""
        ...

    @property
    def images(self) -> Images:
        """What reads it."""
        ...


def open_source(spec: str, classes: Sequence[str] = (), allowed: Allowed | None = None) -> Source:
    """Open a folder, a zip, `digits` or `torchvision:NAME[:ROOT]`: all of it, or some classes.

    Raises SourceError for anything else, for classes that it does not have, and for what looks wrong and is not
    allowed.
    """
    allowed = allowed or Allowed()
    source = _open(spec, allowed)
    if classes:
        source = Chosen(source, classes)
    try:
        check_classes(source.classes, source.items, source.account, allowed)
    except SourceError as error:
        raise SourceError(f"{spec}: {error}") from error
    return source


def stamp(spec: str) -> list[Any]:
    """Return what tells a source from what lies under its name at another time, without reading the images."""
    if spec == "digits" or spec.startswith("torchvision:"):
        return [spec]
    root = Path(spec).resolve()
    status = root.stat()
    if not root.is_dir():
        return [str(root), status.st_size, status.st_mtime_ns]
    digest, seen = hashlib.sha256(), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # of links that lead in a circle, which building refuses
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # a link to nothing
                status = os.stat(path)
                digest.update(json.dumps([path, status.st_size, status.st_mtime_ns]).encode())
    return [str(root), digest.hexdigest()]


def _open(spec: str, allowed: Allowed) -> Source:
    if spec == "digits":
        return Digits()
    if spec.startswith("torchvision:"):
        _, name, *root = spec.split(":", 2)
        return Torchvision(name, Path(root[0]) if root else Path.home() / ".cache" / "torchvision")
    path = Path(spec)
    if path.is_dir():
        return Folder(path, allowed)
    if path.is_file() and zipfile.is_zipfile(path):
        return Zip(path, allowed)
    raise SourceError(
        f"{spec}: {_what_it_is(path)}. SOURCE is a folder of class folders, a zip of one, `digits` or "
        f"`torchvision:NAME`."
    )


def _what_it_is(path: Path) -> str:
    """Return what a path leads to that is no source."""
    if not path.is_file():
        return "neither a folder nor a zip" if path.exists() else "no such file or folder"
    with open_regular(path) as file:
        kind = kind_of(file.read(512))
    if kind == "a zip":
        return "begins as a zip, but is cut off or damaged at its end. Fetch it again"
    return f"{kind}, neither a folder nor a zip"


class Chosen:
    """Some classes of a source, in the order they are named in.  Raises SourceError for those it does not have."""

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        if unknown := [name for name in classes if name not in source.classes]:
            raise SourceError(f"no class {shown(unknown)} in the source. It has: {shown(source.classes)}")
        numbers = {source.classes.index(name): number for number, name in enumerate(classes)}
        if len(numbers) < len(classes):
            raise SourceError(f"a class is named twice: {', '.join(classes)}")
        kept = {
            split: [item for item, (_, label) in enumerate(rows) if label in numbers]
            for split, rows in source.items.items()
        }
        self.classes = list(classes)
        self.items = {
            split: [(source.items[split][item][0], numbers[source.items[split][item][1]]) for item in of_split]
            for split, of_split in kept.items()
        }
        self.places = {split: [source.places[split][item] for item in of_split] for split, of_split in kept.items()}
        self.images, self.account = source.images, source.account
        for split, rows in source.items.items():
            for key, label in rows:
                if label not in numbers:
                    self.account.leave("of other classes", f"{split}: {key}")
        self.account.taken = sum(map(len, kept.values()))


def extension_of(path: str) -> str:
    """Return the WebDataset extension of an image file."""
    extension = path.rpartition(".")[2].lower()
    return "jpg" if extension in JPEG_ENDINGS else extension


class Arrangement:
    """Images that have paths in a source, sorted into splits and classes by them."""

    def __init__(self, arranged: Arranged) -> None:
        self.classes, self.items, self.account = arranged.classes, arranged.items, arranged.account
        self.places: Mapping[str, Sequence[str]] = arranged.paths


class Folder(Arrangement):
    """A folder of class folders, with split folders above them or not."""

    def __init__(self, root: Path, allowed: Allowed) -> None:
        self.root, self.images = root, Files(root)
        self._folders: list[str] = []
        self._visits: Counter[Path] = Counter()
        listed = list(self._list(root, "", (), allowed))
        super().__init__(arrange(listed, self._folders, str(root), allowed))

    def _list(self, folder: Path, prefix: str, above: tuple[Path, ...], allowed: Allowed) -> Iterator[Listed]:
        """Yield the files of a folder and of those below it; links to folders are followed, as timm does.

        Nothing is taken of hidden folders: links in them are not followed, and what cannot be listed is counted.
        """
        real = folder.resolve()
        if real in above:
            raise SourceError(f"{folder}: a link to a folder that it lies in, which has no end. Remove the link.")
        self._visits[real] += 1
        if self._visits[real] > MAX_VISITS:
            yield Listed(prefix, f"folders that links lead to over {MAX_VISITS} times")
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if is_hidden(prefix):
                yield Listed(prefix, "hidden")
                return
            raise SourceError(f"{folder}: cannot be listed ({error.strerror}). Nothing is left out unsaid.") from error
        for entry in entries:
            name = prefix + entry.name
            hidden = is_hidden(name)
            if hidden and entry.is_symlink():
                yield Listed(name, "hidden")
            elif _is_folder(entry):
                if not hidden:
                    check_name(name, str(self.root))
                    self._folders.append(name)
                yield from self._list(Path(entry.path), f"{name}/", (*above, real), allowed)
            else:
                yield Listed(name, self._refusal(entry, name, (*above, real), allowed))

    def _refusal(self, entry: os.DirEntry[str], name: str, above: tuple[Path, ...], allowed: Allowed) -> str:
        """Return why a file is not taken, nothing if it is.  Raises SourceError for an image that is a link out."""
        if entry.is_symlink() and not os.path.exists(entry.path):
            return "links to nothing"
        if why := why_not(name):
            return why
        check_name(name, str(self.root))
        try:
            status = entry.stat()
        except OSError as error:
            raise SourceError(f"{entry.path}: cannot be read ({error.strerror}).") from error
        if not stat.S_ISREG(status.st_mode):
            return "no regular files"
        if entry.is_symlink() and not allowed.allow_links:
            target = Path(entry.path).resolve()
            if not any(target.is_relative_to(folder) for folder in above):
                raise SourceError(
                    f"{entry.path}: a link to {target}, which lies outside of the source. Its content would be "
                    f"packed; if that is meant: --allow-links"
                )
        return _refusal_by_size(status.st_size)


class Files:
    """Images that are files below a folder, by their paths in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, place: str) -> tuple[bytes, str]:
        """Return the file as it is.  Raises SourceError where it grew beyond the bound, or while it was read."""
        path = self.root / place
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, MAX_BYTES) + 1)  # memory for so much is taken beforehand
        if size > MAX_BYTES or len(content) != size:
            raise SourceError(
                f"{path}: grew to over {MAX_BYTES:,} bytes, or was written to, while the shards were built. Build "
                f"again when nothing writes there."
            )
        return content, extension_of(place)


class Zip(Arrangement):
    """A zip of class folders; its members are read as they are."""

    def __init__(self, path: Path, allowed: Allowed) -> None:
        self.images = Packed(path)
        members = self.images.zip.infolist()
        unpacked = sum(info.file_size for info in members)
        if unpacked > max(SMALL, MAX_RATIO * path.stat().st_size):
            raise SourceError(
                f"{path}: {path.stat().st_size:,} bytes that unpack to {unpacked:,}, which images do not. Unpack it "
                f"yourself if you trust it, and build from the folder."
            )
        if sealed := [info.filename for info in members if info.flag_bits & 1]:
            raise SourceError(f"{path}: {shown(sealed)} are encrypted. Unpack it, and build from the folder.")
        if other := {info.compress_type for info in members} - METHODS:
            raise SourceError(
                f"{path}: compressed in a way (number {min(other)}) that Python does not read; 9 is Deflate64, of "
                f"Windows. Unpack it, and build from the folder."
            )
        named: dict[str, str] = {}  # path -> name in the zip
        listed: list[Listed] = []
        folders: set[str] = set()
        for info in members:
            check_name(info.filename, str(path))
            name = "/".join(part for part in info.filename.split("/") if part not in ("", "."))
            folder = name if info.is_dir() else name.rpartition("/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition("/")[0]
            if info.is_dir():
                continue
            if name in named:
                raise SourceError(f"{path}: holds {name!r} twice. Unpack it, and build from the folder.")
            named[name] = info.filename
            listed.append(Listed(name, why_not(name) or self._refusal(info)))
        super().__init__(arrange(listed, sorted(folders), str(path), allowed))
        self.places = {split: [named[path] for path in paths] for split, paths in self.places.items()}

    def _refusal(self, info: zipfile.ZipInfo) -> str:
        if stat.S_ISLNK(info.external_attr >> 16):
            return "links"
        return _refusal_by_size(info.file_size)


class Packed:
    """Images that are members of a zip, by their names; each process opens it for itself.  Raises SourceError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:  # of several parts, for instance
            raise SourceError(f"{path}: cannot be opened as a zip ({error}).") from error

    def read(self, place: str) -> tuple[bytes, str]:
        """Return the member as it is.  Raises SourceError where its bytes are damaged."""
        try:
            with self.zip.open(place) as member:
                return b"".join(iter(partial(member.read, PIECE), b"")), extension_of(place)
        except UNPACKING as error:
            raise SourceError(f"{self.path}: {place} cannot be unpacked ({error}). Fetch it again.") from error

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or leads to one.  Raises SourceError where that cannot be seen."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, which leads nowhere
            return False
        raise SourceError(f"{entry.path}: cannot be read ({error.strerror}).") from error


def _refusal_by_size(size: int) -> str:
    if size == 0:
        return "empty"
    return f"over {MAX_BYTES // 2**20} MiB" if size > MAX_BYTES else ""


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a fifth of them (360), drawn once, is `test`."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.classes = [str(digit) for digit in range(10)]
        self.images = Pixels(np.round(digits.images * (255 / 16)).astype(np.uint8))  # [1797, 8, 8], 0..16 -> 0..255
        order = np.random.Generator(np.random.Philox(key=0)).permutation(len(digits.images))
        held_out = len(order) // 5 + 1
        self.places = {"train": sorted(order[held_out:].tolist()), "test": sorted(order[:held_out].tolist())}
        self.items = {
            split: [(f"{row:04d}", int(digits.target[row])) for row in rows] for split, rows in self.places.items()
        }
        self.account = Account(files=len(order), taken=len(order))


class Pixels:
    """Images that are rows of an array [N, H, W] of bytes."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def read(self, place: int) -> tuple[bytes, str]:
        """Return one image as a grey PNG."""
        return encode_png(Image.fromarray(self._pixels[place])), "png"


class Torchvision:
    """A classification set of torchvision, by class name; its images are stored as PNG, without loss."""

    def __init__(self, name: str, root: Path) -> None:
        self.images = TorchvisionImages(name, root)
        sets = self.images.sets
        first = next(iter(sets.values()))
        labels = {split: labels_of(images) for split, images in sets.items()}
        count = 1 + max(max(of_split) for of_split in labels.values())
        self.classes = [str(c) for c in getattr(first, "classes", range(count))]
        self.items = {
            split: [(f"{i:07d}", label) for i, label in enumerate(of_split)] for split, of_split in labels.items()
        }
        self.places = {split: [(split, i) for i in range(len(of_split))] for split, of_split in labels.items()}
        count = sum(map(len, labels.values()))
        self.account = Account(files=count, taken=count)
        if left := self.images.left:
            self.account.notes.append(f"torchvision's {name} has splits that were not taken: {shown(left)}.")


class TorchvisionImages:
    """Images of a set of torchvision, by split and number; each process opens it for itself.  Raises SourceError."""

    def __init__(self, name: str, root: Path) -> None:
        import torchvision.datasets as datasets

        self._opened = name, root
        maker = getattr(datasets, name, None)
        if maker is None:
            known = ", ".join(n for n in datasets.__all__ if n[0].isupper())
            raise SourceError(f"torchvision has no data set {name!r}. It has: {known}")
        self.sets, self.left = open_torchvision(maker, root)

    def read(self, place: tuple[str, int]) -> tuple[bytes, str]:
        """Return one image as PNG."""
        split, item = place
        return encode_png(self.sets[split][item][0].convert("RGB")), "png"

    def __reduce__(self) -> tuple[type[Self], tuple[str, Path]]:
        return type(self), self._opened


def open_torchvision(maker: Any, root: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the splits of a torchvision set, downloaded to `root` where it knows how, and which are not taken.

    Raises SourceError for a set that has none of ours.
    """
    import inspect

    parameters = inspect.signature(maker).parameters
    download = {"download": True} if "download" in parameters else {}
    if "train" in parameters:
        return {"train": maker(root, train=True, **download), "test": maker(root, train=False, **download)}, []
    if "split" not in parameters:
        return {"train": maker(root, **download)}, []
    spellings = splits_of_torchvision(maker, root)
    taken = {
        split: next(name for name in names if name in spellings)
        for split, names in TORCHVISION_SPLITS.items()
        if not spellings.isdisjoint(names)
    }
    if not taken:
        raise SourceError(
            f"torchvision's {maker.__name__} has no split {', '.join(TORCHVISION_SPLITS)}, but {shown(spellings)}."
        )
    found = {split: maker(root, split=name, **download) for split, name in taken.items()}
    labelled = {split: images for split, images in found.items() if _has_labels(images)}
    return labelled, sorted(spellings - {taken[split] for split in labelled})


def _has_labels(images: Any) -> bool:
    return next(iter(getattr(images, "targets", ())), 0) is not None  # the test split of Places365 lists None


def splits_of_torchvision(maker: Any, root: Path) -> set[str]:
    """Return the names of a torchvision set's splits: it lists them where it refuses one, before it fetches anything.

    Raises SourceError for a set that does not.
    """
    try:
        maker(root, split="?")
    except ValueError as error:
        return set(re.findall(r"'([^']*)'", str(error).partition("Valid values are")[2]))
    except (RuntimeError, OSError) as error:  # it looked for its files first
        raise SourceError(f"torchvision's {maker.__name__} does not say which splits it has ({error}).") from error
    raise SourceError(f"torchvision's {maker.__name__} takes any word for a split, and does not say which it has.")


def labels_of(images: Any) -> list[int]:
    """Return the class numbers of a torchvision set, without decoding its images where it lists them."""
    for name in ("targets", "labels", "_labels"):
        if (values := getattr(images, name, None)) is not None:
            return [int(value) for value in values]
    return [int(images[i][1]) for i in range(len(images))]


def encode_png(image: Image.Image) -> bytes:
    """Return the image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
