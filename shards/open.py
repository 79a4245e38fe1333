"""Data by its name: a data set of ours, tars of others, or images, here or behind a URL.

What has to be made of it first (an index of tars, shards of images) is made once, in the cache, and used again while
the source is as it was. What lies behind a URL stays there but for what is in the cache.
"""

import errno
import json
import os
import shlex
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from shards.build import build
from shards.cache import Cache, default_folder, limit_in_bytes, written
from shards.dataset import HEAD, Dataset, Head, read_dataset
from shards.errors import DamagedFile, Problem, ShardError, harmless
from shards.files import atomic_write, formed, naming, read_json, write_json
from shards.index import HEAD as INDEX_HEAD
from shards.index import ROWS, Index, IndexHead, starts_of
from shards.indexing import index_dataset, index_tars
from shards.labels import Labels, read_class_names
from shards.locks import Held, locked
from shards.members import Shard
from shards.parallel import allowed_cores
from shards.places import download, is_folder_name, is_url, join, listing, read_text, short_hash, size_of
from shards.reader import arrive
from shards.sources import stamp
from shards.splits import names_splits, rearranged
from shards.tars import INFOS, Tars, find_tars, may_be_tar, names_tars

SOURCE: Final = "source.json"  # in the cache: what something was made of
SAMPLES_PER_SHARD: Final = 1000

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read that is not a folder of ours: where to keep what is made or fetched, and what tars mean."""

    cache: str = ""  # folder for what is fetched or built; the user's own cache folder, if none is named
    cache_limit: str = "80%"  # of fetched tars in it: 200GB, or a share of what its disk has free
    splits: tuple[str, ...] = ()  # other roles: train=train+val val=test; of tars without any: train=PATTERN
    label: str = "auto"  # in tars: auto (.cls, .cls.txt), txt, json:FIELD, or folder, that of the key
    first_label: int | None = None  # number of the first class; 0, if none is given and some sample has it
    class_names: str = ""  # file that names the classes of tars, one a line

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with it."""
        try:
            _ = self.labels
        except ShardError as error:
            yield Problem("data.label", str(error))
        try:
            _ = self.opened_cache
        except ValueError as error:
            yield Problem("data.cache_limit", f"--data.cache-limit {self.cache_limit}: {error}.")
        if len({names_splits(words) for words in self.splits}) > 1:
            yield Problem(
                "data.splits",
                f"--data.splits {' '.join(self.splits)}: names splits and patterns of tars; say it all by patterns.",
            )

    def flags(self) -> Iterator[str]:
        """Yield the flags that say the same, where it is not what is said without any."""
        for item in fields(self):
            if (value := getattr(self, item.name)) != item.default:
                yield f"--data.{item.name.replace('_', '-')}"
                yield from map(str, value if isinstance(value, tuple) else (value,))

    @property
    def labels(self) -> Labels:
        """What labels mean.  Raises ShardError."""
        names = read_class_names(self.class_names) if self.class_names else ()
        return Labels(self.label, self.first_label, names)

    @property
    def opened_cache(self) -> Cache:
        """The cache.  Raises ValueError for a limit that is none."""
        folder = Path(self.cache) if self.cache else default_folder()
        return Cache(folder, limit_in_bytes(self.cache_limit, folder))


class Opener:
    """What opens data: the cache, and how tars without an index are read.  `say` is told what takes time.

    `processes` work beside each other: as many as there are cores, if no number is said.
    """

    def __init__(self, reading: Reading, say: Say, processes: int | None = None) -> None:
        self.cache, self.labels = reading.opened_cache, reading.labels
        self.roles = tuple(filter(names_splits, reading.splits))  # of splits; else what is said is of tars
        self.splits = () if self.roles else reading.splits
        self.flags = list(replace(reading, splits=self.splits).flags())  # of indexing
        self.say, self.processes = say, processes or len(allowed_cores())

    def open(self, spec: str) -> Dataset:
        """Return the data that is called so.  Raises ShardError or SourceError that says what is wrong with it."""
        dataset = self.as_it_lies(spec)
        return rearranged(dataset, self.roles) if self.roles else dataset

    def as_it_lies(self, spec: str) -> Dataset:
        """Return the data that is called so, with its own splits."""
        if names_tars(spec):
            return self._tars(spec)
        if is_url(spec) and (content := read_text(join(spec, HEAD))) is not None:
            return self._ours(spec, content)
        if is_url(spec) or holds_tars(Path(spec)):
            return self._tars(spec)
        if holds_images(spec):
            return self._built(spec)
        return read_dataset(Path(spec))  # or it says what is there instead

    def index(self, spec: str) -> Dataset:
        """Return the data set of tars, each of which is read: a folder's anew, those behind URLs through the cache.

        Raises ShardError for other roles of splits: these are said where the data is read.
        """
        if self.roles:
            raise ShardError(
                f"{spec}: --data.splits {' '.join(self.roles)} gives splits other roles, which is for training. An "
                f"index has them as they lie; leave it out."
            )
        if not names_tars(spec) and not is_url(spec):
            try:
                return index_dataset(Path(spec), self.processes, self.labels, self.splits)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                raise ShardError(
                    f"{error.filename or spec}: cannot be written ({error.strerror}). The tars can be used as they "
                    f"are: --data {spec} has their index in the cache."
                ) from error
        dataset = self._tars(spec, reads=True)
        for index in dataset.splits.values():
            if index.known is None:
                for shard in range(len(index.shards)):
                    os.close(arrive(index, shard))
        return dataset

    def _ours(self, url: str, content: bytes) -> Dataset:
        """Return a data set of ours behind a URL; what describes it is fetched to the cache."""
        try:
            head = formed(content, Head)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{join(url, HEAD)}: torn or altered ({error}). Copy the data set again.") from error
        folder = self.cache.folder / "datasets" / short_hash(url)
        if strange := [split for split in head["splits"] if not is_folder_name(split)]:
            raise ShardError(f"{join(url, HEAD)}: {harmless(strange[0])!r} is no name of a folder in it.")
        with self._alone(folder):
            stale = [split for split, of in head["splits"].items() if _fingerprint(folder / split) != of["fingerprint"]]
            try:
                self._describe(url, content, folder, stale)
                return read_dataset(folder, place=url, named=url, cache=self.cache)
            except ShardError:
                if len(stale) == len(head["splits"]):  # all of it is as it lies there
                    raise
            self._describe(url, content, folder, list(head["splits"]))  # what lay in the cache was torn
            return read_dataset(folder, place=url, named=url, cache=self.cache)

    def _describe(self, url: str, content: bytes, folder: Path, splits: Iterable[str]) -> None:
        """Fetch the indexes of splits of a data set of ours, and write its dataset.json beside them."""
        with written(folder):
            for split in splits:
                (folder / split).mkdir(exist_ok=True)
                for name in (ROWS, INDEX_HEAD):  # the head last: it says that both are there
                    self._fetch(join(url, f"{split}/{name}"), folder / split / name)
            with atomic_write(folder / HEAD) as file:  # another process may be reading it
                file.write(content)

    def _tars(self, spec: str, *, reads: bool = False) -> Dataset:
        """Return tars of others: of an index in the cache, that is made for those that are here."""
        where = spec if is_url(spec) else str(Path(spec).resolve())
        tars = find_tars(spec if names_tars(spec) else where, self.splits)
        names = self.labels.names or tars.classes
        options = [where, self.splits, self.labels.source, self.labels.first, names]
        folder = self.cache.folder / "indexes" / short_hash(json.dumps(options))
        source = _stamp_of(tars)
        cache = self.cache if tars.is_remote else None
        with self._alone(folder):
            if tars.is_remote and tars.lengths:
                return self._streamed(tars, folder, spec)
            if known := _made(folder, source, place=tars.place, named=spec, cache=cache):
                return known
            if tars.is_remote and not reads:
                raise ShardError(
                    f"{spec}: nobody says how many samples these tars hold. Read each once: "
                    f"vitrail shards index {shlex.join([spec, *self.flags])}"
                )
            self.say(f"{spec}: indexing {sum(map(len, tars.splits.values()))} tars, once, into {folder}")
            dataset = index_tars(tars, folder, self.labels, self.processes, named=spec, cache=cache)
            write_json(folder / SOURCE, source)
        return dataset

    def _streamed(self, tars: Tars, folder: Path, spec: str) -> Dataset:
        """Return tars behind URLs whose lengths are known: each is indexed when it arrives."""
        for note in tars.notes:  # no dataset.json holds them
            self.say(f"{spec}: {note}")
        splits = {}
        labels = replace(self.labels, names=self.labels.names or tars.classes)
        for split, of_split in tars.splits.items():
            shards = tuple(Shard(name, tars.lengths[name], 0) for name in of_split if tars.lengths[name])
            if not shards:
                raise ShardError(f"{spec}: no samples in the tars of {split}.")
            splits[split] = Index(
                folder=folder / split,
                shards=shards,
                known=None,
                starts=starts_of(shards),
                fingerprint=short_hash(json.dumps([*([shard.name, shard.samples] for shard in shards), *labels.marks])),
                labels=labels,
                place=tars.place,
                cache=self.cache,
                named=spec,
            )
        return Dataset(folder=folder, classes=labels.names, splits=splits, named=spec)

    def _built(self, spec: str) -> Dataset:
        """Return the data set of images, whose shards are built into the cache."""
        source = stamp(spec)
        folder = self.cache.folder / "built" / short_hash(json.dumps(source))
        with self._alone(folder):
            if not (folder / HEAD).exists():
                self.say(f"{spec}: building its shards, once, into {folder}")
                build(spec, folder, samples_per_shard=SAMPLES_PER_SHARD, holdout=0.0, processes=self.processes)
        return read_dataset(folder, named=spec)

    def _fetch(self, url: str, path: Path) -> None:
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        if (size := size_of(url)) > self.cache.limit:
            raise ShardError(f"{url}: {size:,} bytes, more than --data.cache-limit lets the cache hold.")
        with naming(part):
            download(url, part, size)
        part.replace(path)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Be the only process that works in a folder of the cache: one makes what is missing, the others find it."""
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(folder / ".lock", timeout=0, say=self.say))
                except Held as held:
                    self.say(f"{folder}: waiting for another process, which prepares the data. {held.remedy}")
                    stack.enter_context(locked(folder / ".lock", timeout=-1))
            except OSError as error:
                raise ShardError(
                    f"{folder}: cannot be written to ({error.strerror}). Name another folder: --data.cache"
                ) from error
            yield


def holds_tars(folder: Path) -> bool:
    """Return whether tars without an index of ours lie in a folder."""
    if not folder.is_dir() or (folder / HEAD).exists() or (folder / INDEX_HEAD).exists():
        return False
    return any((folder / name).exists() for name in INFOS) or any(map(may_be_tar, listing(str(folder))))


def holds_images(spec: str) -> bool:
    """Return whether a name is one that shards are built from."""
    path = Path(spec)
    if spec == "digits" or spec.startswith("torchvision:"):
        return True
    if path.is_dir():
        return not (path / HEAD).exists() and not (path / INDEX_HEAD).exists() and any(map(Path.is_dir, path.iterdir()))
    return path.is_file() and zipfile.is_zipfile(path)


def _made(folder: Path, source: Any, **where: Any) -> Dataset | None:
    """Return what was made of a source, None where that is of another one, or cannot be read."""
    try:
        if read_json(folder / SOURCE, dict[str, Any]) == source:
            return read_dataset(folder, **where)
    except (FileNotFoundError, DamagedFile, ShardError):
        pass
    return None


def _stamp_of(tars: Tars) -> dict[str, Any]:
    """Return what tells tars from others of the same names, as far as that is known without reading them."""
    stamps = {}
    for split, names in tars.splits.items():
        for name in names:
            mark: list[Any] = [split]
            if not is_url(path := join(tars.place, name)):
                with naming(Path(path)):
                    status = os.stat(path)
                mark += [status.st_size, status.st_mtime_ns]
            stamps[name] = mark
    return stamps


def _fingerprint(folder: Path) -> str | None:
    try:
        return read_json(folder / INDEX_HEAD, IndexHead)["fingerprint"]
    except (FileNotFoundError, DamagedFile):
        return None
