"""Labels of samples in tars that others made: where they stand, and what numbers they become."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shards.arrange import shown
from shards.errors import ShardError
from shards.places import read_text

MAX_CLASSES: Final = 1_000_000  # the highest label: a larger number is an identity of something else
MAX_LABEL: Final = 64  # bytes of a .cls file
MAX_NAME: Final = 1024  # bytes of a class's name
MAX_JSON: Final = 2**20  # bytes of a sample's .json
SOURCES: Final[Mapping[str, tuple[str, ...]]] = {  # endings by the words for them
    "auto": ("cls", "cls.txt"),
    "txt": ("txt",),
    "json": ("json",),
    "folder": (),
}
LIMITS: Final[Mapping[str, int]] = {  # bytes of a member that holds a label
    "cls": MAX_LABEL,
    "cls.txt": MAX_LABEL,
    "txt": MAX_NAME,
    "json": MAX_JSON,
}
NUMBER: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
LABEL_ENDINGS: Final = tuple(ending for endings in SOURCES.values() for ending in endings)
REMEDY: Final = "Say where the labels stand: --data.label txt, json:FIELD, or folder for the folder of the key."


@dataclass(frozen=True, slots=True)
class Labels:
    """Where the label of a sample stands, and which number it becomes.  Raises ShardError for other words."""

    source: str = "auto"  # .cls or .cls.txt; txt; json:FIELD; folder: the one that the key lies in
    first: int | None = None  # the number that class 0 has; None: 0, and nobody said so
    names: tuple[str, ...] = ()  # of the classes, in the order of their numbers, where somebody said them
    by_name: bool = False  # a label is a name, even where it looks like a number

    def __post_init__(self) -> None:
        kind, separator, field = self.source.partition(":")
        if kind not in SOURCES or bool(field) != (kind == "json") or bool(separator) != bool(field):
            raise ShardError(f"--data.label {self.source}: it is auto, txt, json:FIELD or folder.")

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the members that hold labels."""
        return SOURCES[self.source.partition(":")[0]]

    @property
    def marks(self) -> list[object]:
        """What the numbers of labels follow from, beside the tars; nothing where these say them alone."""
        if self.source == "auto":  # which are numbers, whatever the classes are called
            return [self.source, self.first] if self.first else []
        return [self.source, self.first or 0, self.names]

    def read(self, content: bytes, ending: str, where: str) -> int | str:
        """Return the label that a member holds.  Raises ShardError with what it holds instead."""
        if ending in SOURCES["auto"]:
            return class_number(content, where)
        if ending == "json":
            return self._field(content, where)
        try:
            text = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ShardError(f"{where}: {content[:40]!r} is no name in UTF-8.") from error
        return _number_or_name(text, where)

    def numbered(self, said: Mapping[str, int | str], where: str) -> tuple[list[int], tuple[str, ...]]:
        """Return the labels of a tar, by key, as numbers; and, where they are names without numbers yet, those names.

        Raises ShardError for labels that cannot be numbered.
        """
        if self.by_name or any(isinstance(label, str) for label in said.values()):
            names = self.names or tuple(sorted({str(label) for label in said.values()}))
            numbers = {name: number for number, name in enumerate(names)}
            if unknown := [key for key, label in said.items() if str(label) not in numbers]:
                raise ShardError(
                    f"{where}: the label of {unknown[0]!r} is {said[unknown[0]]!r}, none of the {len(names)} names of "
                    f"the classes."
                )
            return [numbers[str(label)] for label in said.values()], names
        first = self.first or 0
        numbered = [int(label) - first for label in said.values()]
        for key, number in zip(said, numbered, strict=True):
            if number < 0:
                raise ShardError(
                    f"{where}: the label of {key!r} is {said[key]}; labels are numbered from {first}, as "
                    f"--data.first-label says."
                )
            if self.names and number >= len(self.names):
                remedy = "" if self.first else " If the first one is 1: --data.first-label 1"
                raise ShardError(
                    f"{where}: the label of {key!r} is {said[key]}, of {len(self.names)} named classes, the first of "
                    f"which is {first}.{remedy}"
                )
        return numbered, ()

    def _field(self, content: bytes, where: str) -> int | str:
        field = self.source.partition(":")[2]
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{where}: no JSON ({error}).") from error
        if not isinstance(value, dict) or field not in value:
            there = shown(value) if isinstance(value, dict) else type(value).__name__
            raise ShardError(f"{where}: has no field {field!r}, but {there}.")
        label = value[field]
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ShardError(f"{where}: {field!r} is {str(label)[:MAX_LABEL]}, no number and no name.")
        return class_number(str(label).encode(), where) if isinstance(label, int) else _number_or_name(label, where)


def _number_or_name(text: str, where: str) -> int | str:
    """Return the number or the name that a text is.  Raises ShardError for one that is neither."""
    if not text or "\n" in text or len(text) > MAX_NAME:
        raise ShardError(f"{where}: {text[:40]!r} is not a label of one line of at most {MAX_NAME} letters.")
    return class_number(text.encode(), where) if NUMBER.fullmatch(text) else text


def class_number(content: bytes, where: str) -> int:
    """Return the number that a .cls file holds.  Raises ShardError with what it holds instead."""
    text = content.removeprefix(b"\xef\xbb\xbf").strip()
    if len(text) > MAX_LABEL or not re.fullmatch(rb"-?[0-9]+", text):
        raise ShardError(f"{where} holds no class number but {text[:MAX_LABEL].decode(errors='replace')!r}.")
    number = int(text)
    if number < 0:
        raise ShardError(f"{where} holds the class number {number}; classes are numbered from 0.")
    if number > MAX_CLASSES:
        raise ShardError(f"{where} holds the class number {number}, more than {MAX_CLASSES:,}. Is it a class?")
    return number


def read_class_names(path: str) -> tuple[str, ...]:
    """Return what a file names classes, one a line, in the order of their numbers.  Raises ShardError."""
    try:
        content = read_text(path)
    except ShardError as error:
        raise ShardError(f"--data.class-names {error}") from error
    if content is None:
        raise ShardError(f"--data.class-names {path}: no such file.")
    names = tuple(line.strip() for line in content.decode(errors="replace").splitlines() if line.strip())
    if not 0 < len(names) <= MAX_CLASSES:
        raise ShardError(f"--data.class-names {path}: {len(names):,} names; write one a line, at most {MAX_CLASSES:,}.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ShardError(f"--data.class-names {path}: names {shown(twice)} twice.")
    return names
