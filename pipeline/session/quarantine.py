"""Samples of a split that could not be used: counted once each, whatever the number of processes, and named."""

import json
from collections.abc import Iterable

from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.data.batch import Unusable
from pipeline.session.log import Log
from shards.index import Index


class Quarantine:
    """The unusable samples of a split that a run knows of, the same on every process after each `share`."""

    def __init__(self, log: Log, index: Index, accelerator: Accelerator) -> None:
        self._log = log
        self._index = index
        self._accelerator = accelerator
        self._keys = log.folder.quarantined(index.folder.name)
        self._news: dict[int, Unusable] = {}  # met by this process and not shared yet

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def has_news(self) -> bool:
        """Whether this process met unusable samples that the others may not know of."""
        return bool(self._news)

    def note(self, unusable: Iterable[Unusable]) -> None:
        """Take note of what this process met."""
        self._news |= {found.sample: found for found in unusable if self._index.key(found.sample) not in self._keys}

    def share(self) -> None:
        """Let all processes know what each has met, and name what is new; all must ask."""
        met = {found.sample: found for found in gather_object(list(self._news.values()))}
        self._news.clear()
        new = [met[sample] for sample in sorted(met) if self._index.key(sample) not in self._keys]
        self._keys |= {self._index.key(found.sample) for found in new}
        if new and self._log.main:
            with self._log.folder.quarantine.open("a") as file:
                for found in new:
                    shard = self._index.shards[self._index.shard_of(found.sample)].name
                    where = {"split": self._index.folder.name, "shard": shard, "key": self._index.key(found.sample)}
                    offset = int(self._index.rows["offset"][found.sample])
                    file.write(json.dumps({**where, "offset": offset, "reason": found.reason}) + "\n")
            self._log.say("\n".join(f"not usable: {found.reason}" for found in new))
