"""Places behind URLs: what is there, and bytes of it, through fsspec, with patience for what passes.

A network fails in ways that pass (a server that restarts, a connection that is cut, one that stands still) and in
others that do not (no such file, no right to read it). The former are tried again until nothing has come for LIMIT
seconds; the latter are said at once.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from shards.arrange import is_hidden
from shards.errors import DamagedFile, ShardError, harmless
from shards.files import open_regular

T = TypeVar("T")
SCHEMES: Final = ("http", "https", "s3", "gs", "hf")
EXTRA: Final = "pip install 'vitrail[remote]'"
CONNECT: Final = 15  # seconds to be connected
STALL: Final = 30  # seconds in which nothing comes, after which a connection is given up
LIMIT: Final = 300.0  # seconds of trying in which nothing comes, after which the run is; below a process group's
OPENING: Final = 30.0  # the same before a run has begun: an address may be misspelt
LONGEST_WAIT: Final = 15.0  # seconds between two tries
CHUNK: Final = 16 * 2**20  # bytes of one request
PASSING: Final = {408, 425, 429}  # HTTP's words for "later"
NETWORKS: Final = (  # libraries whose errors are those of a network, unless they say more
    *("aiohttp", "botocore", "aiobotocore", "gcsfs", "requests"),
    *("httpx", "httpcore", "httpx2", "httpcore2", "huggingface_hub"),
)
LARGEST_TEXT: Final = 2**26  # bytes of a list, which names a million tars
LONGEST_NAME: Final = 128  # bytes of a split's name: it becomes a folder's
DEPTH: Final = 3  # folders in which tars are looked for: the place, a split's, and parts of it


def is_url(spec: str) -> bool:
    """Return whether a text names what is behind a network.  Raises ShardError for a scheme that is not read."""
    if spec.startswith("pipe:"):
        raise ShardError(f"{spec}: `pipe:` would run a command, which Vitrail never does. Name files or URLs.")
    scheme, separator, _ = spec.partition("://")
    if not separator:
        return False
    if scheme not in SCHEMES:
        raise ShardError(f"{spec}: {scheme}:// is not read. What is: {', '.join(f'{one}://' for one in SCHEMES)}")
    return True


def join(place: str, name: str) -> str:
    """Return the path of a file of a place; `https://` is one too, that of all servers."""
    return f"{place}{name}" if place.endswith("/") else f"{place}/{name}"


def leads_out(name: str) -> bool:
    """Return whether a name of a file in a place is none, or leads out of it."""
    path = PurePosixPath(name)
    return (
        not path.name or path.is_absolute() or ".." in path.parts or "\\" in name or "://" in name or not _is_text(name)
    )


def is_folder_name(name: str) -> bool:
    """Return whether what a place calls a split can be a folder of that name, in which ours lie."""
    return not (leads_out(name) or "/" in name or name.startswith(".")) and len(name.encode()) <= LONGEST_NAME


def _is_text(name: str) -> bool:
    """Return whether a system takes a name: JSON can hold some that are no text."""
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def short_hash(text: str) -> str:
    """Return a name for a text that no other text has."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def size_of(url: str) -> int:
    """Return the bytes of a file.  Raises ShardError where it cannot be had."""

    def ask() -> int:
        system, path = _system(url)
        try:
            size = system.info(path)["size"]
        except FileNotFoundError:  # so fsspec says of every refusal of HTTP; reading tells which it is
            system.cat_file(path, start=0, end=1)
            raise ConnectionError("no answer to a question for its size") from None
        if size is None:
            raise ShardError(f"{url}: the server does not tell its size, without which a cut cannot be noticed.")
        return int(size)

    return patiently(url, ask, LIMIT)


def read_text(name: str) -> bytes | None:
    """Return a small file as a whole, here or behind a URL, None where there is none.

    Raises ShardError where it cannot be had, is no file, or is too large for what is read so.
    """

    def ask() -> bytes | None:
        system, path = _system(name)
        try:
            content: bytes = system.cat_file(path, start=0, end=LARGEST_TEXT)
        except FileNotFoundError:
            return None
        return content

    content = patiently(name, ask, OPENING) if is_url(name) else _read_here(Path(name))
    if content is not None and len(content) >= LARGEST_TEXT:
        raise ShardError(f"{name}: larger than {LARGEST_TEXT:,} bytes, which no list is.")
    return content


def _read_here(path: Path) -> bytes | None:
    """Return as much of a file as a list may have, None where there is none."""
    try:
        with open_regular(path) as file:
            return file.read(LARGEST_TEXT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (DamagedFile, IsADirectoryError) as error:
        raise ShardError(f"{path}: not a regular file. Name another.") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}).") from error


def read_range(url: str, start: int, end: int) -> bytes:
    """Return bytes of a file: those asked for, or the whole file from a server that knows no ranges.

    A single try: whoever asks knows how much has come.
    """
    system, path = _system(url)
    content: bytes = system.cat_file(path, start=start, end=end)
    return content


def download(url: str, part: Path, size: int) -> None:
    """Have the `size` bytes of a URL in a file, going on after those that it has.  Raises ShardError or OSError."""
    with part.open("ab") as file:
        while (start := file.tell()) < size:
            # patience is for what comes from the network: a disk that is full stays full
            file.write(patiently(url, partial(_chunk, url, start, size), LIMIT))
        file.flush()
        os.fsync(file.fileno())


def _chunk(url: str, start: int, size: int) -> bytes:
    """Return what one request brings of a file of `size` bytes, from `start` on."""
    end = min(start + CHUNK, size)
    content = read_range(url, start, end)
    if len(content) == size != end - start:  # from a server that knows no ranges
        content = content[start:]
    if not content or len(content) > size - start:
        raise ConnectionError(f"{len(content)} bytes came where {end - start} were asked for")
    return content


def listing(place: str) -> list[str]:
    """Return the names of the files of a place and of the folders in it, but for hidden ones.

    Raises ShardError where it lists nothing.
    """
    if is_url(place):
        return patiently(place, lambda: sorted(_listing_there(place)), OPENING)
    return sorted(_listing_here(Path(place)))


def _listing_here(folder: Path, above: str = "", depth: int = DEPTH) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield above + entry.name
            elif depth > 1 and not is_hidden(entry.name):
                yield from _listing_here(folder / entry.name, f"{above}{entry.name}/", depth - 1)


def _listing_there(url: str) -> Iterator[str]:
    system, path = _system(url)
    folders = [path.rstrip("/") + "/" if url.startswith("http") else path]
    for _ in range(DEPTH):
        above, folders = folders, []
        for folder in above:
            for entry in system.ls(folder, detail=True):
                name = str(entry["name"]).removeprefix(path.rstrip("/")).strip("/")
                if name.rpartition("/")[2].startswith(".") or name == folder.removeprefix(path.rstrip("/")).strip("/"):
                    continue
                if entry["type"] == "directory":
                    folders.append(str(entry["name"]))
                else:
                    yield name


def patiently(url: str, ask: Callable[[], T], limit: float) -> T:
    """Return what asking gives, which is done again for so many seconds while what fails may pass.

    Raises ShardError, with what to do, where it does not.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    try:
        return Retrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT),
            stop=stop_after_delay(limit),
            reraise=True,
        )(ask)
    except Exception as error:
        raise refusal(url, error, limit) from error


def passes(error: BaseException) -> bool:
    """Return whether what failed may go well later."""
    if (status := _status(error)) is not None:
        return status in PASSING or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | ValueError):
        return False
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.partition(".")[0] in NETWORKS


def _status(error: BaseException | None) -> int | None:
    """Return the status of HTTP that an error stands for, as aiohttp or the hub's library says it."""
    status: int | None = getattr(error, "status", None)
    return getattr(getattr(error, "response", None), "status_code", None) if status is None else status


def refusal(url: str, error: Exception, limit: float) -> ShardError:
    """Return what a person is told of a file that cannot be had, and what to do."""
    if isinstance(error, ShardError):
        return error
    said = harmless(" ".join(str(error).split())) or type(error).__name__
    status = _status(error) or _status(error.__cause__)
    if url.startswith("hf://") and status in (401, 403):  # the hub answers so of what is not there, too
        return ShardError(
            f"{url}: not there, or not for everybody. If the address is right, accept the terms on its page, and log "
            f"in: hf auth login"
        )
    if isinstance(error, FileNotFoundError):
        return ShardError(f"{url}: not there. See whether the address is right.")
    if isinstance(error, ImportError):
        return ShardError(f"{url}: needs what reads such addresses ({said}): {EXTRA}")
    if passes(error):
        return ShardError(
            f"{url}: cannot be read, tried for {limit:.0f} s ({type(error).__name__}: {said}). See to the network or "
            f"the server, and start the same command again to go on."
        )
    return ShardError(f"{url}: refused ({said}). See whether it may be read with the credentials of this machine.")


def _system(url: str) -> tuple[Any, str]:
    """Return what reads a URL, which each process has of its own, and the path by which it knows it."""
    import fsspec

    scheme = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        # a chunk as a whole has more time: what drips is given up too
        limits = aiohttp.ClientTimeout(total=8 * STALL, sock_connect=CONNECT, sock_read=STALL)
        options |= {"client_kwargs": {"timeout": limits, "trust_env": True}, "headers": {"Accept-Encoding": "identity"}}
    elif scheme == "s3":
        options["config_kwargs"] = {"connect_timeout": CONNECT, "read_timeout": STALL, "retries": {"max_attempts": 1}}
    system = fsspec.filesystem(scheme, **options)
    return system, str(system._strip_protocol(url))
