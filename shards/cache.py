"""The cache: tars that lie behind URLs, fetched once for all processes of a machine, up to so many bytes.

    CACHE/tars/HASH.tar     a whole tar; HASH is of its URL
    CACHE/tars/HASH.SIZE.part   as much of it as has come, of so many bytes
    CACHE/tars/HASH.lock    held by the process that fetches it

A process that reads a tar, or is about to, holds its file open with a shared lock of the system's, which ends with the
process however that ends; what is so held is never removed. Of the rest those go first that were used longest ago. On a
file system without locks nobody knows what is held: a cache belongs on a disk of the machine.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shards.errors import DamagedFile, ShardError
from shards.files import naming, open_regular
from shards.locks import Held, hold, locked, seize
from shards.places import LIMIT, download, short_hash, size_of

UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
TRIES: Final = 5  # to open a tar that another process may remove before it is held


def default_folder() -> Path:
    """Return the user's cache folder for Vitrail."""
    from platformdirs import user_cache_path

    return user_cache_path("vitrail")


def limit_in_bytes(text: str, folder: Path) -> int:
    """Return how many bytes a cache may hold: `200GB`, or `80%` of what is free and what it holds already.

    Raises ValueError for what is neither.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%|[KMGT]B)", text, flags=re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError("it is a number above 0 and one of %, KB, MB, GB, TB")
    number, unit = float(found[1]), found[2].upper()
    if unit != "%":
        return int(number * UNITS[unit])
    if number > 100:
        raise ValueError("a share is at most 100 %")
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    held = sum(size for _, size, _ in _tars(folder / "tars"))
    return int(number / 100 * (shutil.disk_usage(there).free + held))


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """Have an OSError of what is written to a folder of the cache say what to do, as a ShardError."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{error.filename or folder}: {error.strerror or error}. Make room, or name another --data.cache, and go "
            f"on."
        ) from error


class Cache:
    """Tars behind URLs, in a folder of this machine that holds at most `limit` bytes of them."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.tars = folder / "tars"

    def open(self, url: str, size: int | None = None) -> int:
        """Return a descriptor of a whole tar, fetched if it is not there; while it is open the tar is not removed.

        `size`: its bytes, where they are known. Raises ShardError where it cannot be had, or has another size.
        """
        path = self.path(url)
        for _ in range(TRIES):
            self.fetch(url, size)
            try:
                with open_regular(path) as file:
                    descriptor = os.dup(file.fileno())
            except FileNotFoundError:
                continue
            except (OSError, DamagedFile) as error:
                raise ShardError(f"{path}: cannot be opened ({error}). Remove it, and go on.") from error
            try:
                hold(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
            if os.fstat(descriptor).st_nlink:  # else removed between the two
                os.utime(descriptor)
                return descriptor
            os.close(descriptor)
        raise ShardError(f"{path}: removed again as often as it was fetched. Give more --data.cache-limit.")

    def path(self, url: str) -> Path:
        """Return where a tar lies once it is fetched."""
        return self.tars / f"{short_hash(url)}.tar"

    def holds(self, url: str) -> bool:
        """Return whether a tar is there."""
        return self.path(url).exists()

    def fetch(self, url: str, size: int | None = None) -> None:
        """Have a tar whole in the cache.  Raises ShardError where that cannot be."""
        path = self.path(url)
        if self._is_whole(path, size):
            return
        with written(self.tars):
            self.tars.mkdir(parents=True, exist_ok=True)
            with self._alone(path, url):
                if self._is_whole(path, size):  # another process fetched it meanwhile
                    return
                path.unlink(missing_ok=True)
                there = size_of(url)
                if size is not None and there != size:
                    raise ShardError(
                        f"{url}: {there} bytes, the index says {size}. Another file lies there than was indexed: index "
                        f"the data again, or put the former file back."
                    )
                self._download(url, there)

    @contextlib.contextmanager
    def _alone(self, path: Path, url: str) -> Iterator[None]:
        """Be the only process that fetches a tar.  Raises ShardError where another one does, and nothing comes."""
        before = -1
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(path.with_suffix(".lock"), timeout=LIMIT))
                    break
                except Held as held:
                    came = sum(part.stat().st_size for part in self.tars.glob(f"{path.stem}.*.part"))
                    if came == before:
                        raise ShardError(
                            f"{url}: another process fetches it, and nothing has come for {LIMIT:.0f} s. {held.remedy}"
                        ) from held
                    before = came
            yield

    def _is_whole(self, path: Path, size: int | None) -> bool:
        try:
            return size in (None, path.stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _download(self, url: str, size: int) -> None:
        path = self.path(url)
        part = path.with_suffix(f".{size}.part")
        for other in self.tars.glob(f"{path.stem}.*.part"):
            if other != part:  # of a file that had another size
                other.unlink()
        self._make_room(part, size)
        with naming(part):
            download(url, part, size)
        part.replace(path)

    def _make_room(self, part: Path, size: int) -> None:
        """Begin a part of a tar of `size` bytes, and remove tars until all are within the limit, but none in use."""
        with locked(self.tars / "room.lock", timeout=LIMIT):
            part.touch()
            tars = sorted(_tars(self.tars))
            total = sum(taken for _, taken, _ in tars)
            for _, taken, path in tars:
                if total <= self.limit:
                    break
                if path != part and _removed(path):
                    total -= taken


def _tars(tars: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each tar of a cache was last used, the bytes that it takes or will take, and its path."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(tars):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".tar"):
                    yield entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)
                elif entry.name.endswith(".part"):
                    yield entry.stat().st_mtime, int(entry.name.split(".")[-2]), Path(entry.path)


def _removed(path: Path) -> bool:
    """Remove a tar that nobody holds, or what came of one that nobody fetches; return whether it was."""
    if path.suffix == ".part":
        try:
            with locked(path.with_name(f"{path.name.partition('.')[0]}.lock"), timeout=0):
                path.unlink(missing_ok=True)
                return True
        except Held:
            return False
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if not seize(file.fileno(), path):
            return False
        path.unlink(missing_ok=True)
    return True
