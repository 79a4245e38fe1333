"""The head of a store, `store.json`: whose outputs a folder holds, so that others' are refused and never misread."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from pipeline.config import FIELDS
from pipeline.errors import StoreError
from pipeline.fields import differing, flag
from shards.errors import DamagedFile, Problem
from shards.files import read_json, write_json

HEAD: Final = "store.json"


class Head(TypedDict):
    """store.json."""

    format_version: int
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class StoreKind:
    """A kind of store."""

    field: str  # of the recipe, that names its folder
    holds: str  # in words
    version: int  # of its form

    def differences(self, folder: Path, wanted: dict[str, Any], unknown: Collection[str] = ()) -> list[Problem]:
        """Return how a store differs from what is wanted; an empty list for a new one.

        `unknown` are names of which nobody knows yet what is wanted. Raises StoreError if the folder holds something
        else.
        """
        # what lies there is listed before the head is looked for: another job may begin the store meanwhile, head first
        strange = folder.exists() and (
            not folder.is_dir() or any(not path.name.startswith(f".{HEAD}.") for path in folder.iterdir())
        )
        if not (folder / HEAD).exists():
            if strange:
                raise StoreError(f"{folder}: neither empty nor a store of {self.holds} (it has no {HEAD}).")
            return []
        try:
            saved = read_json(folder / HEAD, Head)
        except (OSError, DamagedFile) as error:
            raise StoreError(f"{error} Nobody can say what the store holds: name another folder.") from error
        version, held = saved["format_version"], saved["fingerprint"]
        if version != self.version:
            raise StoreError(
                f"{folder}: filled by another version of Vitrail (format {version}; this one reads {self.version}), "
                f"and nobody can say of which views. Name another folder."
            )
        return [
            Problem(
                self.field,
                f"{folder} holds outputs for {name} = {held.get(name)}, the request says {wanted.get(name)}"
                + (f" (--{flag(name)})." if name in FIELDS else "."),
            )
            for name in differing(held, wanted)
            if name not in unknown
        ]

    def begin(self, folder: Path, wanted: dict[str, Any]) -> None:
        """Write the head of a new store.  Raises StoreError where the folder holds outputs of others."""
        if not (folder / HEAD).exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / HEAD, {"format_version": self.version, "fingerprint": wanted})
        # as it is now: another job may have begun it meanwhile
        if found := self.differences(folder, wanted):
            raise StoreError("\n".join(problem.sentence for problem in found))
