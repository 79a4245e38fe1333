"""Where images come from: class folders, a zip of them, scikit-learn's digits, torchvision's data sets.

A source lists its splits once, and gives encoded images by number; it is opened anew in each building process.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from shards.errors import SourceError
from shards.index import IMAGE_EXTENSIONS

SPLITS: Final = ("train", "val", "test")


class Source(Protocol):
    """Labelled images.  `items[split]` is a list of (key, class number); `read` gives one of them, encoded."""

    classes: list[str]
    items: dict[str, list[tuple[str, int]]]

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return the encoded image and its extension."""
        ...


def open_source(spec: str, classes: Sequence[str] = ()) -> Source:
    """Open a folder, a zip, `digits` or `torchvision:NAME[:ROOT]`: all of it, or some classes.

    Raises SourceError for anything else, and for classes that it does not have.
    """
    return Chosen(_open(spec), classes) if classes else _open(spec)


def _open(spec: str) -> Source:
    if spec == "digits":
        return Digits()
    if spec.startswith("torchvision:"):
        _, name, *root = spec.split(":", 2)
        return Torchvision(name, Path(root[0]) if root else Path.home() / ".cache" / "torchvision")
    path = Path(spec)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return Zip(path)
    what = "no such file or folder" if not path.exists() else "neither a folder nor a zip"
    raise SourceError(
        f"{spec}: {what}. SOURCE is a folder of class folders, a zip of one, `digits` or `torchvision:NAME`."
    )


class Chosen:
    """Some classes of a source, in the order they are named in.  Raises SourceError for those it does not have."""

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        if unknown := [name for name in classes if name not in source.classes]:
            raise SourceError(f"no class {', '.join(unknown)} in the source. It has: {', '.join(source.classes)}")
        numbers = {source.classes.index(name): number for number, name in enumerate(classes)}
        if len(numbers) < len(classes):
            raise SourceError(f"a class is named twice: {', '.join(classes)}")
        self._source = source
        self._kept = {
            split: [item for item, (_, label) in enumerate(rows) if label in numbers]
            for split, rows in source.items.items()
        }
        self.classes = list(classes)
        self.items = {
            split: [(source.items[split][item][0], numbers[source.items[split][item][1]]) for item in kept]
            for split, kept in self._kept.items()
        }

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return the image as the source gives it."""
        return self._source.read(split, self._kept[split][item])


def arrange(
    names: Sequence[str], where: str
) -> tuple[list[str], dict[str, list[tuple[str, int]]], dict[str, list[str]]]:
    """Sort image paths into classes and splits.

    Takes paths `[above/...]<split>/<class>/...image` or `[above/...]<class>/...image` and returns the class
    names, the items of each split, and the path of each item. Class numbers follow the alphabet.
    """
    paths = [PurePosixPath(name) for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    paths = [path for path in paths if "__MACOSX" not in path.parts and not path.name.startswith(".")]
    if not paths:
        raise SourceError(f"{where}: no images ({', '.join(IMAGE_EXTENSIONS)}) in it.")
    above = 0  # folders that all images share lie above the splits or classes
    while all(len(path.parts) > above + 2 for path in paths) and len({path.parts[above] for path in paths}) == 1:
        if paths[0].parts[above] in SPLITS:
            break
        above += 1
    found: dict[str, list[tuple[str, str, str]]] = {}  # split -> (key, class, path)
    has_splits = all(path.parts[above] in SPLITS for path in paths)
    for path in sorted(paths):
        split, rest = (path.parts[above], path.parts[above + 1 :]) if has_splits else ("train", path.parts[above:])
        if len(rest) < 2:
            raise SourceError(f"{where}: {path} lies in no class folder; want [train|val|test]/<class>/<image>.")
        key = "/".join((*rest[:-1], path.stem)).replace(".", "_")  # WebDataset ends a key at the first dot
        found.setdefault(split, []).append((key, rest[0], str(path)))
    classes = sorted({name for rows in found.values() for _, name, _ in rows})
    numbers = {name: number for number, name in enumerate(classes)}
    items = {split: [(key, numbers[name]) for key, name, _ in rows] for split, rows in found.items()}
    for split, rows in items.items():
        seen: set[str] = set()
        if twice := next((key for key, _ in rows if key in seen or seen.add(key)), None):  # type: ignore[func-returns-value]
            raise SourceError(f"{where}: two images of {split} would both be called {twice!r}; rename one of them.")
    return classes, items, {split: [path for _, _, path in rows] for split, rows in found.items()}


def extension_of(path: str) -> str:
    """Return the WebDataset extension of an image file."""
    extension = path.rpartition(".")[2].lower()
    return "jpg" if extension == "jpeg" else extension


class Folder:
    """A folder of class folders, with split folders above them or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        self.classes, self.items, self._paths = arrange(names, str(root))

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return the file as it is."""
        path = self._paths[split][item]
        return (self.root / path).read_bytes(), extension_of(path)


class Zip:
    """A zip of class folders; its members are read as they are."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        self.classes, self.items, self._paths = arrange(names, str(path))

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return the member as it is."""
        path = self._paths[split][item]
        return self._zip.read(path), extension_of(path)


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a fifth of them (360), drawn once, is `test`."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.classes = [str(digit) for digit in range(10)]
        self._pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 0..16 -> 0..255
        order = np.random.Generator(np.random.Philox(key=0)).permutation(len(self._pixels))
        held_out = len(order) // 5 + 1
        self._rows = {"train": sorted(order[held_out:]), "test": sorted(order[:held_out])}
        self.items = {
            split: [(f"{row:04d}", int(digits.target[row])) for row in rows] for split, rows in self._rows.items()
        }

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return one digit as a grey PNG."""
        return encode_png(Image.fromarray(self._pixels[self._rows[split][item]])), "png"


class Torchvision:
    """A classification set of torchvision, by class name; its images are stored as PNG, without loss."""

    def __init__(self, name: str, root: Path) -> None:
        import torchvision.datasets as datasets

        maker = getattr(datasets, name, None)
        if maker is None:
            known = ", ".join(n for n in datasets.__all__ if n[0].isupper())
            raise SourceError(f"torchvision has no data set {name!r}. It has: {known}")
        self._sets = open_torchvision(maker, root)
        first = next(iter(self._sets.values()))
        labels = {split: labels_of(images) for split, images in self._sets.items()}
        count = 1 + max(max(of_split) for of_split in labels.values())
        self.classes = [str(c) for c in getattr(first, "classes", range(count))]
        self.items = {
            split: [(f"{i:07d}", label) for i, label in enumerate(of_split)] for split, of_split in labels.items()
        }

    def read(self, split: str, item: int) -> tuple[bytes, str]:
        """Return one image as PNG."""
        return encode_png(self._sets[split][item][0].convert("RGB")), "png"


def open_torchvision(maker: Any, root: Path) -> dict[str, Any]:
    """Return the splits of a torchvision set, downloaded to `root` where it knows how."""
    import inspect

    parameters = inspect.signature(maker).parameters
    download = {"download": True} if "download" in parameters else {}
    if "train" in parameters:
        return {"train": maker(root, train=True, **download), "test": maker(root, train=False, **download)}
    if "split" not in parameters:
        return {"train": maker(root, **download)}
    found = {}
    for split in SPLITS:
        try:
            found[split] = maker(root, split=split, **download)
        except ValueError:  # torchvision's word for a split that this set does not have
            continue
    return found


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
