"""Tars that others made: which there are under a name, and to which split each belongs.

A name is a folder, a tar, a pattern with braces (`train-{0000..1023}.tar`), several of these joined with `::`, or a
text file that lists them; of files here or of URLs. Splits follow from folders or from names, or are said. What a place
says of itself is not believed before it is known to lead nowhere else.
"""

import fnmatch
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NotRequired, TypedDict

from shards.arrange import SPLITS, shown, split_named
from shards.errors import ShardError, harmless
from shards.files import formed
from shards.places import is_folder_name, is_url, join, leads_out, listing, read_text

INFOS: Final = ("_info.json", "info.json")  # timm's list of the tars of each split, with their lengths
UNPACK: Final = {  # endings of compressed tars, and what unpacks them
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
MOST: Final = 1_000_000  # tars that a name may stand for
DEEPEST: Final = 8  # braces within braces
LARGEST: Final = 2**28  # characters of the names that a pattern may stand for
MOST_SAMPLES: Final = 10**12  # of a split
INNERMOST: Final = re.compile(r"\{([^{}]*)\}")
RANGE: Final = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.-?(\d+))?")


class SplitInfo(TypedDict):
    """What an _info.json says of a split."""

    filenames: list[str]
    shard_lengths: NotRequired[list[int]]


class Info(TypedDict):
    """What is read of an _info.json."""

    splits: dict[str, SplitInfo]


@dataclass(frozen=True)
class Tars:
    """The tars of each split, in order: names within a place; and their lengths where they are known."""

    place: str  # a folder, or the URL of one; `https://` where they lie on several servers
    splits: Mapping[str, tuple[str, ...]]
    lengths: Mapping[str, int] = field(default_factory=dict)  # samples by name; of all tars, or of none
    classes: tuple[str, ...] = ()  # names, where the place says them
    notes: tuple[str, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether they lie behind URLs."""
        return "://" in self.place


def find_tars(spec: str, said: Sequence[str] = ()) -> Tars:
    """Return the tars that a name stands for; `said` are words like `train=shard-*.tar`.

    Raises ShardError where there are none, or where it is not clear to which split one belongs.
    """
    if names_tars(spec):
        place, names = _named(spec)
        return _there(_split(place, _checked(names, spec), said, spec))
    for file in INFOS:
        if (content := read_text(where := join(spec, file))) is not None:
            return _there(_as_info_says(spec, content, where, said))
    tars = [name for name in listing(spec) if may_be_tar(name)]
    if not tars:
        raise ShardError(f"{spec}: no tars there.")
    return _split(spec, _checked(tars, spec), said, spec)


def names_tars(spec: str) -> bool:
    """Return whether a name stands for single tars, and not for a folder of some."""
    named = "::" in spec or "{" in spec or spec.endswith(".txt") or may_be_tar(spec)
    return named and not os.path.isdir(spec)


def may_be_tar(name: str) -> bool:
    """Return whether a file is called as a tar is, or a compressed one."""
    return _is_tar(name) or bool(_unpacker(name))


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def _unpacker(name: str) -> str:
    """Return what unpacks a compressed tar, nothing for what is none."""
    return next((tool for ending, tool in UNPACK.items() if name.lower().endswith(ending)), "")


def _checked(names: Iterable[str], where: str) -> list[str]:
    """Return names of tars of a place.  Raises ShardError for other names, and for those that lead out of it."""
    names = list(names)
    for name in names:
        if leads_out(name):
            raise ShardError(f"{where}: holds the name {name!r}, which leads out of it.")
        if tool := _unpacker(name):
            raise ShardError(
                f"{where}: {name!r} is compressed, so that no sample can be read by itself. Unpack it, and "
                f"others like it, to plain tars: {tool} {PurePosixPath(name).name}"
            )
        if not _is_tar(name):
            raise ShardError(f"{where}: {name!r} is no name of a tar, which ends in .tar.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ShardError(f"{where}: names {shown(twice)} more than once, whose samples would count so often.")
    return names


def _there(tars: Tars) -> Tars:
    """Return tars that were named one by one.  Raises ShardError where some are not there; URLs are not asked."""
    named = [name for names in tars.splits.values() for name in names]
    if not tars.is_remote and (absent := [name for name in named if not Path(join(tars.place, name)).exists()]):
        raise ShardError(f"{tars.place}: {shown(absent)}: not there. Copy what is missing, or name others.")
    return tars


def _named(spec: str) -> tuple[str, list[str]]:
    """Return the folder that tars share which are named one by one, and their names in it."""
    names: list[str] = []
    for part in filter(None, spec.split("::")):
        names += _listed(part) if part.endswith(".txt") else expand(part)
        if len(names) > MOST:
            raise ShardError(f"{spec}: stands for more than {MOST:,} tars.")
    if not names:
        raise ShardError(f"{spec}: names no tar.")
    kinds = {name.partition("://")[0] if is_url(name) else "" for name in names}
    if len(kinds) > 1:
        there = ", ".join(f"{kind}://" if kind else "files here" for kind in sorted(kinds))
        raise ShardError(f"{spec}: names tars of several kinds of places ({there}). Name those of one kind.")
    if kinds == {""}:
        names = [os.path.abspath(name) for name in names]
    first, last = min(names), max(names)
    same = next((at for at, chars in enumerate(zip(first, last, strict=False)) if len({*chars}) > 1), len(first))
    shared = first[: first.rindex("/", 0, same) + 1]  # of all servers: https://
    whole = shared == "/" or shared.endswith("://")
    return shared if whole else shared.removesuffix("/"), [name.removeprefix(shared) for name in names]


def _listed(path: str) -> list[str]:
    """Return what a text file lists, a name or a pattern a line."""
    if (content := read_text(path)) is None:
        raise ShardError(f"{path}: no such list of tars.")
    place = path.rpartition("/")[0] or "."
    names: list[str] = []
    for line in map(str.strip, content.decode(errors="replace").splitlines()):
        if line and not line.startswith("#"):
            if line.startswith("/") and is_url(path):
                raise ShardError(f"{path}: lists {line!r}, a file of this machine. Name files there, or URLs.")
            names += expand(line if is_url(line) or line.startswith("/") else join(place, line))
        if len(names) > MOST:
            raise ShardError(f"{path}: stands for more than {MOST:,} tars.")
    return names


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for.  Raises ShardError for one of too many."""
    from braceexpand import braceexpand

    if "{" not in pattern and "}" not in pattern:
        return [pattern]
    try:
        if (count := _count(pattern)) > MOST or count * len(pattern) > LARGEST:
            raise ShardError(f"{pattern[:200]}: stands for too many tars; {MOST:,} may be named.")
        return list(braceexpand(pattern))
    except ValueError as error:
        said = harmless(str(error))[:200]
        raise ShardError(f"{pattern[:200]}: {said}. Write the names as train-{{0000..0099}}.tar") from error


def _count(pattern: str) -> int:
    """Return how many names a pattern stands for.  Raises ValueError for braces that are too deep in one another."""

    def product(text: str) -> int:
        return math.prod(int(number) for number in re.findall("\0([0-9]+)\0", text))

    def size(group: re.Match[str]) -> str:
        inner = group[1]
        if found := RANGE.fullmatch(inner):
            first, last = (ord(end) if end.isalpha() else int(end) for end in found.groups()[:2])
            count = abs(last - first) // (int(found[3] or 1) or 1) + 1
        else:
            count = sum(map(product, inner.split(",")))
        return f"\0{min(count, MOST + 1)}\0"

    counted = pattern.replace("\0", "")
    for _ in range(DEEPEST):
        if not INNERMOST.search(counted):
            return product(counted)
        counted = INNERMOST.sub(size, counted)
    raise ValueError(f"more than {DEEPEST} braces within one another")


def _as_info_says(place: str, content: bytes, where: str, said: Sequence[str]) -> Tars:
    """Return the tars as an _info.json names them, in its splits or in those that are said."""
    try:
        info = formed(content, Info)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: {error}; it should hold splits with filenames and shard_lengths.") from error
    names = _checked((name for split in info["splits"].values() for name in split["filenames"]), where)
    if not names:
        raise ShardError(f"{where}: names no tars.")
    lengths: dict[str, int] = {}
    for split, of_split in info["splits"].items():
        numbers = of_split.get("shard_lengths", [])
        if numbers and (len(numbers) != len(of_split["filenames"]) or min(numbers) < 0 or sum(numbers) > MOST_SAMPLES):
            raise ShardError(
                f"{where}: {len(of_split['filenames'])} filenames of {split!r}, but {len(numbers)} "
                f"shard_lengths, or one below 0, or more than {MOST_SAMPLES:,} in all."
            )
        lengths |= dict(zip(of_split["filenames"], numbers, strict=False))
    if said:
        found = _split(place, names, said, where)
    else:
        found = _in_order(place, _roles(info, where))
    if not found.is_remote and (unnamed := sorted(set(filter(_is_tar, listing(place))) - set(names))):
        found = replace(found, notes=(*found.notes, f"Tars that {where} does not name are left out: {shown(unnamed)}."))
    taken = {name for of_split in found.splits.values() for name in of_split}
    known = {name: lengths[name] for name in names if name in taken} if taken <= lengths.keys() else {}
    return replace(found, lengths=known, classes=_class_names(info))


def _roles(info: Info, where: str) -> dict[str, list[str]]:
    """Return the tars that an _info.json names for train, val and test, however it calls them."""
    splits: dict[str, list[str]] = {}
    for split, of_split in info["splits"].items():
        role = split_named(split) or split
        if role in splits:
            raise ShardError(f"{where}: two splits are called {role!r}.")
        if of_split["filenames"]:
            splits[role] = of_split["filenames"]
    return splits


def _class_names(info: Mapping[str, Any]) -> tuple[str, ...]:
    for field_ in ("classes", "class_names", "label_names"):
        names = info.get(field_)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def _split(place: str, names: Sequence[str], said: Sequence[str], spec: str) -> Tars:
    """Return the tars of each split: as is said, or by their folders and names.  Raises ShardError."""
    notes = []
    split_of = _as_said(names, said, spec) if said else {name: split_of_name(name) for name in names}
    folders = {name.rpartition("/")[0] for name in names}
    if not said and not any(split_of.values()) and len(folders) == 1:
        role = split_named(join(place, names[0]).split("/")[-2])
        if not role:
            notes.append("No tar is in a folder of a split or named after one: all are taken to train on.")
        split_of = dict.fromkeys(names, role or "train")
    elif not said:  # another folder is a split of its own
        split_of = {name: split or name.rpartition("/")[0].rpartition("/")[2] for name, split in split_of.items()}
        if without := [name for name, split in split_of.items() if not split]:
            raise ShardError(
                f"{spec}: {shown(without)} belong to no split by folder or name. Say which: --data.splits "
                f"'train=PATTERN' 'val=PATTERN'"
            )
    splits: dict[str, list[str]] = {}
    for name in names:
        if split := split_of.get(name):
            splits.setdefault(split, []).append(name)
    if left := len(names) - sum(map(len, splits.values())):
        notes.append(f"{left} tars are left out, which no pattern of --data.splits names.")
    return _in_order(place, splits, *notes)


def _in_order(place: str, splits: Mapping[str, Sequence[str]], *notes: str) -> Tars:
    """Return tars by split: train, val, test, others.  Raises ShardError for a split that no folder can be called."""
    if bad := [split for split in splits if not is_folder_name(split)]:
        raise ShardError(f"{place}: {bad[0]!r} is no name of a split. Name it as a folder could be.")
    order = {split: number for number, split in enumerate(SPLITS)}
    by_role = sorted(splits, key=lambda split: (order.get(split, len(order)), split))
    return Tars(place, {split: tuple(splits[split]) for split in by_role}, notes=notes)


def _as_said(names: Sequence[str], said: Sequence[str], spec: str) -> dict[str, str]:
    """Return the split of each tar that one of `train=PATTERN` names, by its path or by its last part."""
    split_of: dict[str, str] = {}
    for words in said:
        split, equals, pattern = words.partition("=")
        if not equals or not split or not pattern:
            raise ShardError(f"{spec}: --data.splits {words}: write it as train=PATTERN.")
        wanted = set(expand(pattern))
        globs = [name for name in wanted if any(char in name for char in "*?[")]
        matching = [name for name in names if _matches({name, PurePosixPath(name).name}, wanted, globs)]
        if not matching:
            raise ShardError(f"{spec}: --data.splits {words}: no tar there has such a name; there is {shown(names)}.")
        role = split_named(split) or split
        for name in matching:
            if split_of.setdefault(name, role) != role:
                raise ShardError(f"{spec}: --data.splits names {name} for {split_of[name]} and for {split}.")
    return split_of


def _matches(called: set[str], wanted: set[str], globs: Sequence[str]) -> bool:
    return bool(called & wanted) or any(fnmatch.fnmatchcase(name, glob) for name in called for glob in globs)


def split_of_name(name: str) -> str:
    """Return the split that a tar belongs to by its folder, or by a word of its name; nothing where neither says."""
    *folders, file = name.split("/")
    by_folder = [split for folder in folders if (split := split_named(folder))]
    if by_folder:
        return by_folder[-1]
    by_word = {split for word in re.split(r"[^A-Za-z]+", file) if (split := split_named(word))}
    return by_word.pop() if len(by_word) == 1 else ""
