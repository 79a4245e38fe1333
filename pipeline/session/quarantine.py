"""Samples of a split that could not be used: counted once each, whatever the number of processes, and named.

Those of earlier sessions are tried again at the beginning of the next: a shard may have been copied again.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.data.batch import Unusable
from pipeline.session.log import Log
from shards.arrange import shown
from shards.decode import decode
from shards.errors import SampleError, ShardError
from shards.files import naming
from shards.index import Index
from shards.reader import Reader

TRIED: Final = 2000  # samples of earlier sessions, at most: some seconds; --data.max-bad allows ImageNet-1k 1281

Name = tuple[str, str]  # shard and key of a sample


class Met(NamedTuple):
    """An unusable sample, as the process that met it describes it: others may not have its shard."""

    sample: int
    name: Name
    offset: int
    reason: str


class Quarantine:
    """The unusable samples of a split that a run knows of, the same on every process after each `share`.

    All processes must make it: one of them tries those of earlier sessions for all.
    """

    def __init__(self, log: Log, index: Index, accelerator: Accelerator) -> None:
        self._log = log
        self._index = index
        self._accelerator = accelerator
        known = [self._still_unusable() if log.main else set()]
        broadcast_object_list(known)
        self._known = known[0]
        self._news: dict[Name, Met] = {}  # met by this process and not shared yet

    def __len__(self) -> int:
        return len(self._known)

    @property
    def has_news(self) -> bool:
        """Whether this process met unusable samples that the others may not know of."""
        return bool(self._news)

    def note(self, unusable: Iterable[Unusable]) -> None:
        """Take note of what this process met."""
        met = [self._met(found) for found in unusable]
        self._news |= {one.name: one for one in met if one.name not in self._known}

    def share(self) -> None:
        """Let all processes know what each has met, and name what is new; all must ask."""
        met: dict[Name, Met] = {one.name: one for one in gather_object(list(self._news.values()))}
        self._news.clear()
        new = sorted(met[name] for name in met.keys() - self._known)  # by their numbers
        self._known |= met.keys()
        if new and self._log.main:
            with naming(self._log.folder.quarantine), self._log.folder.quarantine.open("a") as file:
                for _, (shard, key), offset, reason in new:
                    where = {"split": self._index.folder.name, "shard": shard, "key": key, "offset": offset}
                    file.write(json.dumps({**where, "reason": reason}) + "\n")
            self._log.say("\n".join(f"not usable: {one.reason}" for one in new))

    def _still_unusable(self) -> set[Name]:
        """Return the unusable samples of earlier sessions without those that can be used now, or are gone."""
        split, folder = self._index.folder.name, self._log.folder
        known = folder.quarantined(split)
        tried = sorted(known)[:TRIED]
        mended = set(tried) - set(unusable(self._index, tried))
        if mended:
            folder.release(split, mended)
            names = shown(f"{shard} {key}" for shard, key in mended)
            self._log.say(f"{len(mended)} unusable samples of {split} are mended or gone, and count no more: {names}")
        return known - mended

    def _met(self, found: Unusable) -> Met:
        """Return how an unusable sample is described, by its shard's rows: they are here, as it was read here."""
        sample, index = found.sample, self._index
        name = (index.shards[index.shard_of(sample)].name, index.key(sample))
        return Met(sample, name, int(index.row(sample)["offset"]), found.reason)


def unusable(index: Index, names: Iterable[Name]) -> Iterator[Name]:
    """Yield those of the named samples that a split has and that cannot be used."""
    wanted: dict[str, set[str]] = {}
    for name, key in names:
        wanted.setdefault(name, set()).add(key)
    with closing(Reader(index)) as reader:
        for number, shard in enumerate(index.shards):
            keys = wanted.get(shard.name, set())
            here = not index.cache or (index.cache.holds(index.tar(number)) and index.is_known(number))
            if not here:  # nothing is fetched for it
                yield from ((shard.name, key) for key in keys)
                continue
            for sample in range(*index.starts[number : number + 2]) if keys else ():
                if (key := index.key(sample)) in keys:
                    try:
                        decode(reader.read(sample), key)
                    except (SampleError, ShardError):  # a shard that cannot be read is not mended
                        yield shard.name, key
