"""What a tar holds: where each image lies, its label and its checksum, and what is neither.

Each member is read once. Nothing that a header says is believed before it is known to be possible.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.arrange import shown
from shards.decode import FORMATS, IMAGE_EXTENSIONS, MAX_BYTES, kind_of
from shards.errors import DamagedFile, ShardError
from shards.files import open_regular
from shards.labels import LABEL_ENDINGS, LIMITS, REMEDY, Labels

MAX_KEY: Final = 512  # bytes: the longest one sets the width of all rows
ENDINGS: Final = sorted({*IMAGE_EXTENSIONS, *LABEL_ENDINGS}, key=len, reverse=True)
AUTO: Final = Labels()
END_OF_TAR: Final = bytes(512)  # an archive that was written to its end has at least one empty block there

Rows = NDArray[np.void]  # fields: offset u8, length u4, label i4, crc32 u4, key S*


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its file name, how many samples it holds, and its size in bytes."""

    name: str
    samples: int
    bytes: int


class Contents(NamedTuple):
    """What a tar holds: its samples, and what a person should know of the rest."""

    rows: Rows
    names: tuple[str, ...]  # a label is a place among these; none: it is a class's number
    left: dict[str, int]  # members that are no image and no label, by what they are; of ours, what was left out
    odd: dict[str, list[str]]  # keys of images that are none of the formats, by what they look like
    bytes: int  # of the tar

    def shard(self, name: str) -> Shard:
        """Return what an index says of the tar, by its name."""
        return Shard(name, len(self.rows), self.bytes)


def row_dtype(key_bytes: int) -> np.dtype[np.void]:
    """Return the type of an index row whose keys take at most `key_bytes` bytes."""
    return np.dtype(
        [("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc32", "<u4"), ("key", f"S{key_bytes}")]
    )


def rows_of(images: Mapping[str, tuple[int, int, int]], labels: Sequence[int]) -> Rows:
    """Return the rows of images, offset, length and CRC by key, and of their labels; raises UnicodeEncodeError."""
    keys = [key.encode() for key in images]
    rows = np.zeros(len(keys), dtype=row_dtype(max(map(len, keys), default=1)))
    if keys:
        rows["offset"], rows["length"], rows["crc32"] = np.array(list(images.values()), dtype=np.uint64).T
        rows["label"] = labels
        rows["key"] = keys
    return rows


class _Archive(io.BufferedReader):
    """A tar's file, of which no header can ask for more than there is, nor for more than an image may have."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        super().__init__(file)
        self._bytes = size

    def read(self, size: int | None = -1, /) -> bytes:
        left = min(MAX_BYTES, max(0, self._bytes - self.tell()))
        return super().read(left if size is None or size < 0 else min(size, left))


def index_tar(path: Path, labels: Labels = AUTO, look: Callable[[str, bytes], None] | None = None) -> Contents:
    """Return what a tar holds, its rows in the order in which the images lie there; none for an empty one.

    `look` is shown each image, by key. Raises ShardError for a tar that is cut off, or goes on after its end, for a
    sample without an image or a label, for one that is larger than decoding takes, and for a key that occurs twice.
    """
    members = _Members(labels, path)
    try:
        size = path.stat().st_size
        with open_regular(path) as opened, _Archive(io.FileIO(opened.fileno(), closefd=False), size) as file:
            _refuse_compressed(path, file.peek(8)[:8])
            end = 0
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = _end_of(member, end, size, path)
                    if member.issparse():
                        raise ShardError(f"{path}: {member.name!r} is stored with holes. Pack it without tar -S.")
                    if limit := members.limit(member):
                        if member.size > limit:
                            raise ShardError(
                                f"{path}: {member.name!r} has {member.size:,} bytes, more than the {limit:,} of "
                                f"{'an image' if limit == MAX_BYTES else 'a label'}. Pack this shard without it."
                            )
                        file.seek(member.offset_data)
                        members.take(member, file.read(member.size), look)
            _check_end(file, end, path)
    except tarfile.TarError as error:
        raise ShardError(f"{path}: {error}. Copy this shard again.") from error
    except DamagedFile as error:
        raise ShardError(str(error)) from error
    except (EOFError, OSError, OverflowError) as error:
        raise ShardError(f"{path}: cannot be read ({error}).") from error
    return members.contents(size)


class _Members:
    """The members of a tar: images, what says their labels, and what is neither."""

    def __init__(self, labels: Labels, path: Path) -> None:
        self._labels, self._path = labels, path
        self._images: dict[str, tuple[int, int, int]] = {}  # key -> offset, length, crc32
        self._said: dict[str, int | str] = {}  # key -> label
        self._linked: set[str] = set()  # keys of images and labels that are links
        self._left: dict[str, int] = {}
        self._odd: dict[str, list[str]] = {}

    def limit(self, member: tarfile.TarInfo) -> int:
        """Return how many bytes a member may have, 0 for one that is left alone."""
        if member.isdir():
            return 0
        key, ending = split_name(member.name)
        wanted = ending in IMAGE_EXTENSIONS or ending in self._labels.endings
        if _is_hidden(member.name):
            self._leave("hidden")
            return 0
        if not member.isfile() or member.islnk():
            self._leave("links" if member.islnk() or member.issym() else "devices and pipes")
            self._linked |= {key} if wanted else set()
            return 0
        if not wanted:
            self._leave(f".{ending}" if ending else "without an ending")
            return 0
        limit = MAX_BYTES if ending in IMAGE_EXTENSIONS else LIMITS[ending]
        if len(key.encode(errors="replace")) > MAX_KEY:
            raise ShardError(f"{self._path}: the key {key[:40]!r}... is longer than {MAX_KEY} bytes.")
        if key in (self._images if ending in IMAGE_EXTENSIONS else self._said):
            what = "image" if ending in IMAGE_EXTENSIONS else "label"
            raise ShardError(f"{self._path}: {key!r} has more than one {what}; give every sample its own key.")
        return limit

    def take(self, member: tarfile.TarInfo, content: bytes, look: Callable[[str, bytes], None] | None) -> None:
        """Take note of an image or a label."""
        key, ending = split_name(member.name)
        if ending not in IMAGE_EXTENSIONS:
            self._said[key] = self._labels.read(content, ending, f"{self._path}: {member.name!r}")
            return
        self._images[key] = (member.offset_data, member.size, zlib.crc32(content))
        if (kind := kind_of(content)) not in FORMATS:
            self._odd.setdefault(kind, []).append(key)
        if look:
            look(key, content)

    def contents(self, size: int) -> Contents:
        """Return what was found in a tar of so many bytes.  Raises ShardError where images and labels do not match."""
        self._settle_dots()
        if self._labels.source == "folder":
            self._said = {key: self._folder(key) for key in self._images}
        for key in self._linked & (self._images.keys() ^ self._said.keys()):
            self._images.pop(key, None)
            self._said.pop(key, None)
            self._leave("images or labels whose other half is a link")
        for found, wanted, what in (
            (self._images, self._said, f"label ({', '.join(self._labels.endings)})"),
            (self._said, self._images, f"image ({', '.join(IMAGE_EXTENSIONS)})"),
        ):
            if missing := [key for key in found if key not in wanted]:
                there = ", ".join(f"{count} {kind}" for kind, count in sorted(self._left.items()))
                remedy = f" {REMEDY}" if wanted is self._said and not self._said else ""
                raise ShardError(
                    f"{self._path}: {len(missing)} samples have no {what}, the first is {missing[0]!r}."
                    f"{f' What else lies there: {there}.' if there else ''}{remedy}"
                )
        images = dict(sorted(self._images.items(), key=lambda image: image[1]))  # as they lie there
        numbers, names = self._labels.numbered({key: self._said[key] for key in images}, str(self._path))
        try:
            rows = rows_of(images, numbers)
        except UnicodeEncodeError as error:
            raise ShardError(f"{self._path}: the key {error.object!a} is not UTF-8.") from error
        return Contents(rows, names, self._left, self._odd, size)

    def _leave(self, why: str) -> None:
        self._left[why] = self._left.get(why, 0) + 1

    def _folder(self, key: str) -> str:
        folder = key.rpartition("/")[0].rpartition("/")[2]
        if folder in ("", ".", ".."):
            raise ShardError(f"{self._path}: the key {key!r} lies in no folder that could be its label.")
        return folder

    def _settle_dots(self) -> None:
        """Give an image without a label, `a.rgb.png`, the one of `a`, where that has no image; else leave it alone."""
        holders = self._images if self._labels.source == "folder" else self._said
        of_key: dict[str, list[str]] = {}
        for key in self._images.keys() - self._said.keys():
            short = first_dot(key)
            if short != key and short in holders:
                of_key.setdefault(short, []).append(key)
        for short, keys in of_key.items():
            if short not in self._images and len(keys) > 1:
                raise ShardError(
                    f"{self._path}: {short!r} has a label and {len(keys)} images ({shown(keys)}), and nothing says "
                    f"which one is meant. Pack one image a key."
                )
            own = short in self._images
            for key in keys:
                image = self._images.pop(key)
                if own:
                    self._leave("images beside the sample's own")
                else:
                    self._images[short] = image


def split_name(name: str) -> tuple[str, str]:
    """Return key and ending of a tar's member: the longest ending that is known, else all from the first dot."""
    folder, _, file = name.rpartition("/")
    lower = file.lower()
    ending = next((ending for ending in ENDINGS if lower.endswith(f".{ending}")), None)
    if ending is None:
        ending = lower.partition(".")[2]
    stem = file[: len(file) - len(ending) - 1] if ending else file
    return f"{folder}/{stem}" if folder else stem, ending


def _is_hidden(name: str) -> bool:
    """Return whether a member is a system's own, as macOS leaves them in tars: `._a.jpg`, `.DS_Store`."""
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")


def first_dot(key: str) -> str:
    """Return a key up to the first dot of its file's name, where webdataset ends it."""
    folder, _, file = key.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _refuse_compressed(path: Path, start: bytes) -> None:
    for magic, tool in (
        (b"\x1f\x8b", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"\xfd7zXZ", "unxz"),
        (b"BZh", "bunzip2"),
    ):
        if start.startswith(magic):
            raise ShardError(f"{path}: compressed, so that no sample can be read by itself. Unpack it: {tool} {path}")


def _end_of(member: tarfile.TarInfo, before: int, size: int, path: Path) -> int:
    """Return where a member ends.  Raises ShardError where that cannot be: tarfile believes what a header says."""
    if member.size < 0 or member.offset < before:
        raise ShardError(f"{path}: the header at byte {member.offset} is damaged. Copy this shard again.")
    end = member.offset_data + (-(-member.size // 512) * 512 if member.isfile() else 0)
    if end > -(-size // 512) * 512:
        raise ShardError(f"{path}: cut off in {member.name!r}, at byte {size}. Copy this shard again.")
    return end


def _check_end(file: _Archive, end: int, path: Path) -> None:
    """Raise ShardError unless the archive ends where its members do, with zeros alone after it."""
    file.seek(end)
    # tarfile takes a cut at a member's boundary for the end: an archive written whole goes on with zeros
    if file.read(512) != END_OF_TAR:
        raise ShardError(f"{path}: cut off after byte {end}, no end-of-archive block. Copy it again.")
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise ShardError(
                f"{path}: goes on after the end of the archive at byte {end}, as tars joined with cat do. Unpack the "
                f"parts (tar --ignore-zeros) and pack them again."
            )
