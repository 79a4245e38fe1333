"""From the names of files to classes and splits, with an account of every file and a complaint of what looks wrong.

Names in, names out: nothing here opens a file, so that a folder and a zip are judged alike.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shards.decode import IMAGE_EXTENSIONS
from shards.errors import SourceError, harmless

SPLITS: Final[Mapping[str, tuple[str, ...]]] = {  # as they are spelled, in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHOWN: Final = 4  # names in a complaint

Parts = tuple[str, ...]  # names in a path
Items = dict[str, list[tuple[str, int]]]  # split: key and class number of each image


def split_named(name: str) -> str | None:
    """Return the split that a folder's name stands for, None for no such name."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What looks wrong with a source, and is meant."""

    allow_empty_classes: bool = False  # class folders without an image that is taken
    allow_one_class: bool = False  # one class alone
    allow_different_classes: bool = False  # splits that lack a class of another one
    allow_similar_classes: bool = False  # names that differ by case, spaces or Unicode form alone
    allow_folders_as_classes: bool = False  # classes that hold the same sub-folders, and look like splits
    allow_strays: bool = False  # images beside the splits or in no class folder; they are left out
    allow_links: bool = False  # links to files outside of the source


@dataclass
class Account:
    """What became of the files of a source."""

    files: int = 0
    taken: int = 0
    not_taken: dict[str, int] = field(default_factory=dict)  # how many, by reason
    examples: dict[str, str] = field(default_factory=dict)  # one of each
    notes: list[str] = field(default_factory=list)  # what else a person should know, a sentence each

    def leave(self, why: str, name: str) -> None:
        """Count a file that is not taken."""
        self.not_taken[why] = self.not_taken.get(why, 0) + 1
        self.examples.setdefault(why, name)

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in dataset.json, where notes have a place of their own."""
        return {name: value for name, value in asdict(self).items() if name != "notes"}

    def __str__(self) -> str:
        left = ", ".join(f"{count:,} {why} ({self.examples[why]})" for why, count in sorted(self.not_taken.items()))
        return f"{self.files:,} files: {self.taken:,} taken" + (f"; not taken: {left}" if left else "")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a source: its path within it, and why it is not taken, if it is not: `why_not`, or what it is."""

    path: str
    refused: str = ""


@dataclass(frozen=True)
class Arranged:
    """The images of a source by split and class; class numbers follow the alphabet."""

    classes: list[str]
    items: Items
    paths: dict[str, list[str]]  # of each item
    account: Account


def arrange(listed: Iterable[Listed], folders: Iterable[str], where: str, allowed: Allowed) -> Arranged:
    """Sort files into classes and splits: `[above/...]<split>/<class>/...image`, or without the split.

    `folders` are all folders of the source: one that stands where classes do is a class, with images or without.
    Raises SourceError where it is not clear what is a split, a class or a key.
    """
    account, images = Account(), []
    for file in listed:
        account.files += 1
        if file.refused:
            account.leave(file.refused, file.path)
        else:
            images.append(parts_of(file.path))
    if not images:
        raise _nothing(where, account)
    shelves = [parts_of(folder) for folder in folders if not is_hidden(folder)]
    above = _above(images, shelves)
    splits = _splits(images, above, where, allowed)
    found: dict[str, list[tuple[str, str, str]]] = {}  # split -> (key, class, path)
    loose: dict[str, list[str]] = {}  # folder of classes, "" for the source itself -> images in no class folder of it
    for image in sorted(images):
        path, parts = "/".join(image), image[above:]
        rest = parts[1:] if splits else parts
        if splits and rest and parts[0] not in splits:
            account.leave("beside the splits", path)
        elif len(rest) < 2:
            account.leave("in no class folder", path)
            loose.setdefault("/".join(parts[:-1]), []).append(path)
        else:
            split = splits[parts[0]] if splits else "train"
            found.setdefault(split, []).append((key_of(rest), rest[0], path))
    if unclear := [*_unclear(found), *_loose(loose, allowed)]:
        raise SourceError(f"{where}: " + "\n".join(unclear))
    if not found:
        raise _nothing(where, account)
    held = {name for rows in found.values() for _, name, _ in rows} | _class_folders(shelves, above, splits)
    classes = sorted(held)
    number = {name: position for position, name in enumerate(classes)}
    account.taken = sum(len(rows) for rows in found.values())
    return Arranged(
        classes=classes,
        items={split: [(key, number[name]) for key, name, _ in rows] for split, rows in found.items()},
        paths={split: [path for _, _, path in rows] for split, rows in found.items()},
        account=account,
    )


def check_classes(classes: Sequence[str], items: Items, account: Account, allowed: Allowed) -> None:
    """Refuse classes that look wrong, and note what a person should know of them.

    Raises SourceError with all that is not allowed.
    """
    in_splits = {split: {classes[label] for _, label in rows} for split, rows in items.items()}
    problems = [
        *_empty(set(classes).difference(*in_splits.values()), account, allowed),
        *_different(in_splits, allowed),
        *_too_alike(classes, allowed),
        *_alone(classes, allowed),
    ]
    if problems:
        raise SourceError("\n".join(problems))
    if all(name.isdecimal() for name in classes) and (
        moved := [name for name, other in zip(classes, sorted(classes, key=int), strict=True) if name != other]
    ):
        account.notes.append(
            f"The names of the classes are numbers, in the order of the alphabet: {moved[0]} is class "
            f"{classes.index(moved[0])}."
        )


def key_of(parts: Sequence[str]) -> str:
    """Return the WebDataset key of an image by the parts of its path: a key ends at the first dot."""
    return "/".join((*parts[:-1], parts[-1].rpartition(".")[0])).replace(".", "_")


def shown(names: Iterable[str]) -> str:
    """Return some of many names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(map(repr, listed[:SHOWN])) + more


def _nothing(where: str, account: Account) -> SourceError:
    return SourceError(f"{where}: no images in it ({account}). Read are {', '.join(IMAGE_EXTENSIONS)}.")


def why_not(path: str) -> str:
    """Return why a file is not taken, by its path; nothing if it is."""
    if is_hidden(path):
        return "hidden"
    _, dot, ending = path.rpartition("/")[2].lower().rpartition(".")
    if dot and ending in IMAGE_EXTENSIONS:
        return ""
    return f".{ending}" if dot and ending else "without an ending"


def is_hidden(path: str) -> bool:
    """Return whether a file or folder is a system's own, or lies in one that is."""
    return any(part.startswith(".") or part in ("__MACOSX", "lost+found") for part in path.split("/"))


def parts_of(path: str) -> Parts:
    """Return the names in a path; those of `PurePath` take most of the time that a small image does."""
    return tuple(path.split("/"))


def _above(images: Sequence[Parts], folders: Sequence[Parts]) -> int:
    """Return how many folders lie above the splits or classes: those that all images share and nothing is beside."""
    above = 0
    while all(len(parts) > above + 2 for parts in images):
        names = {parts[above] for parts in (*images, *folders) if len(parts) > above}
        if len(names) > 1 or split_named(images[0][above]):
            break
        above += 1
    return above


def _splits(images: Sequence[Parts], above: int, where: str, allowed: Allowed) -> dict[str, str]:
    """Return the split of each folder that is one; none where the first folders are classes.  Raises SourceError."""
    inside: dict[str, set[str]] = {}  # of each first folder, the folders with images in it; "" for itself
    for parts in images:
        first, *rest = parts[above:]
        inside.setdefault(first if rest else "", set()).add(rest[0] if len(rest) > 1 else "")
    named = {first: split for first in inside if (split := split_named(first))}
    if any(inside[first] - {""} for first in named):  # else they are classes, of images alone, that are called so
        if (strays := inside.keys() - named.keys() - {""}) and not allowed.allow_strays:
            raise SourceError(
                f"{where}: {shown(named)} are splits, but {shown(strays)} with images lie beside them. Move them "
                f"away, or leave them out: --allow-strays"
            )
        twice = [split for split, count in Counter(named.values()).items() if count > 1]
        if twice:
            both = [first for first, split in named.items() if split in twice]
            raise SourceError(f"{where}: {shown(both)} are names of one split; rename one, or put them together.")
        return named
    nested = {first: names for first, names in inside.items() if "" not in names}
    holders = Counter(name for names in nested.values() for name in names)
    shared = {name for name, count in holders.items() if count > 1}
    if shared and not allowed.allow_folders_as_classes:
        raise SourceError(
            f"{where}: {shown(first for first, names in nested.items() if names & shared)} hold the same folders "
            f"({shown(shared)}): are these the classes, and those splits? Name splits train, val or test; or take the "
            f"outer folders for classes: --allow-folders-as-classes"
        )
    return {}


def _class_folders(folders: Sequence[Parts], above: int, splits: Mapping[str, str]) -> set[str]:
    """Return the names of the folders that stand where classes do, with images or without."""
    depth = above + bool(splits)
    return {parts[depth] for parts in folders if len(parts) == depth + 1 and (not splits or parts[above] in splits)}


def _empty(names: set[str], account: Account, allowed: Allowed) -> Iterable[str]:
    if names and not allowed.allow_empty_classes:
        yield (
            f"{len(names)} class folders have no image that is taken: {shown(names)} ({account}). Remove them, or "
            f"keep them as classes: --allow-empty-classes"
        )


def _different(in_splits: Mapping[str, set[str]], allowed: Allowed) -> Iterable[str]:
    everywhere = set().union(*in_splits.values())
    if allowed.allow_different_classes:
        return
    for split, names in in_splits.items():
        if missing := everywhere - names:
            yield (
                f"{split} has no image of {shown(missing)}, which other splits have. Give it some, or keep it so: "
                f"--allow-different-classes"
            )


def _too_alike(classes: Sequence[str], allowed: Allowed) -> Iterable[str]:
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        alike.setdefault(plain, []).append(name)
    for names in alike.values():
        if len(names) > 1 and not allowed.allow_similar_classes:
            yield (
                f"class folders {', '.join(map(ascii, names))} differ by case, spaces or Unicode form alone. Put them "
                f"together, or keep them apart: --allow-similar-classes"
            )


def _alone(classes: Sequence[str], allowed: Allowed) -> Iterable[str]:
    if len(classes) == 1 and not allowed.allow_one_class:
        yield f"one class alone ({shown(classes)}): nothing can be learnt. If it is meant: --allow-one-class"


def _loose(loose: Mapping[str, Sequence[str]], allowed: Allowed) -> Iterable[str]:
    if allowed.allow_strays:
        return
    for folder, paths in loose.items():
        yield (
            f"{len(paths)} images lie in {f'{folder}/' if folder else 'the folder itself'}, in no class folder of it, "
            f"e.g. {paths[0]}. Move them to [train|val|test]/<class>/<image>, or leave them out: --allow-strays"
        )


def _unclear(found: Mapping[str, Sequence[tuple[str, str, str]]]) -> Iterable[str]:
    for split, rows in found.items():
        twice = [key for key, count in Counter(key for key, _, _ in rows).items() if count > 1]
        if twice:
            yield f"two images of {split} would both be called {shown(twice)}; rename one of them."


def check_name(name: str, where: str) -> None:
    """Refuse a path that leads elsewhere, or that a tar cannot hold.  Raises SourceError."""
    if name.startswith("/") or ".." in parts_of(name) or "\\" in name:
        raise SourceError(
            f"{where}: holds the name {harmless(name)!r}, which leads out of it or was made for another system. "
            f"Unpack it yourself, and build from the folder."
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: the name {name!a} is not UTF-8; rename it.") from error
