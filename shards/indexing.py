"""Indexing tars that others made: each is read once, and left as it is."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from shards.arrange import Account, shown, split_named
from shards.cache import Cache
from shards.dataset import HEAD, HERE, Dataset, Head, notes_of, notes_of_images, read_dataset, read_head, write_dataset
from shards.errors import DamagedFile, ShardError
from shards.files import naming
from shards.index import PARTS, Index, part_file, read_part, write_index, write_part
from shards.labels import Labels
from shards.members import AUTO, Contents, Rows, index_tar
from shards.parallel import mapping
from shards.places import join
from shards.progress import progress
from shards.tars import Tars, find_tars

NUMBERS_AS_NAMES: Final = "The names of the classes are numbers, in the order of the alphabet."


def index_dataset(folder: Path, processes: int = 1, labels: Labels = AUTO, splits: Sequence[str] = ()) -> Dataset:
    """Index the tars of a folder, and write the indexes and `dataset.json` there.

    Raises ShardError for tars that cannot be used, and for labels that are not numbered from 0.
    """
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder.")
    if split_named(folder.name) and (folder.parent / HEAD).exists():
        raise ShardError(f"{folder}: one split of a data set; index the folder above it: {folder.parent}")
    tars = find_tars(str(folder), splits)
    return index_tars(tars, folder, labels, processes)


def index_tars(
    tars: Tars, out: Path, labels: Labels, processes: int, *, named: str = "", cache: Cache | None = None
) -> Dataset:
    """Read tars, those behind URLs through the cache, and write the indexes and `dataset.json` of them to `out`.

    What has been read stays known when this is interrupted. Raises ShardError as `index_dataset`.
    """
    where = tars.place
    labels = replace(labels, names=labels.names or tars.classes)
    homes = {split: out / _home(names, split) for split, names in tars.splits.items()}
    # the usual layout, in which each index lies beside its tars
    beside = where == str(out) and all(
        out / Path(name).parent == homes[split] for split, names in tars.splits.items() for name in names
    )
    work = [(homes[split], name) for split, names in tars.splits.items() for name in names]
    with mapping(processes) as spread:
        found = spread(partial(_inspect, tars.place, labels, cache), work)
        contents = dict(zip([name for _, name in work], progress(found, len(work), "indexing"), strict=True))
    for name, length in tars.lengths.items():
        if len(contents[name].rows) != length:
            raise ShardError(
                f"{join(tars.place, name)}: {len(contents[name].rows)} samples, the list of lengths says {length}. "
                f"Copy this shard again, or remove the list."
            )
    held = {split: [name for name in names if len(contents[name].rows)] for split, names in tars.splits.items()}
    if bare := [split for split, names in held.items() if not names]:
        raise ShardError(f"{where}: {shown(bare)}: no samples in its tars. Leave it out, or copy the shards again.")
    by_name = any(content.names for content in contents.values())
    numbered, classes, notes = _numbered(contents, labels, where)
    former = _former(out) if where == str(out) else None  # what lies in the cache is of nobody's hand
    splits = {}
    for split, names in held.items():
        parts = [(contents[name].shard(Path(name).name if beside else name), numbered[name]) for name in names]
        said = replace(labels, by_name=by_name)
        splits[homes[split].name] = write_index(homes[split], parts, said, "" if beside else where)
    if former and former["classes"] != classes and not labels.names:
        if _of_same_tars(former, splits) and len(former["classes"]) >= len(classes):
            classes = former["classes"]
        else:
            notes.append("The class names that stood here were of other tars; classes are called by their numbers.")
    empty = [name for name, content in contents.items() if not len(content.rows)]
    account = Account(files=len(work), taken=len(work) - len(empty))
    if empty:
        account.not_taken, account.examples = {"empty": len(empty)}, {"empty": empty[0]}
    notes = [*tars.notes, *notes, *_notes_of_rest(contents), *notes_of_images(contents.values()), *notes_of(splits)]
    place = {} if beside else {"place": HERE if where == str(out) else where}
    write_dataset(out, classes, splits, **place, source=account.as_json(), notes=notes)
    for home in homes.values():  # the index holds what they held
        shutil.rmtree(home / PARTS, ignore_errors=True)
    return read_dataset(out, place="" if where == str(out) else where, named=named, cache=cache)


def _home(names: Sequence[str], split: str) -> str:
    """Return the folder of a split's index: that of its tars, where they lie in one that is called so."""
    folders = {name.rpartition("/")[0] for name in names}
    folder = folders.pop()
    return folder if not folders and "/" not in folder and (split_named(folder) or folder) == split else split


def _inspect(place: str, labels: Labels, cache: Cache | None, work: tuple[Path, str]) -> Contents:
    """Return what a tar holds; it is read unless a former reading is known, of this file as it is."""
    home, name = work
    tar = join(place, name)
    if cache:
        part = part_file(home, name, tar)
    else:
        with naming(Path(tar)):
            status = os.stat(tar)
        part = part_file(home, name, status.st_size, status.st_mtime_ns)
    if known := read_part(part):
        return known
    if cache:
        descriptor = cache.open(tar)
        try:
            contents = index_tar(cache.path(tar), labels)
        except ShardError as error:
            raise ShardError(f"{tar}: {error}") from error
        finally:
            os.close(descriptor)
    else:
        contents = index_tar(Path(tar), labels)
    write_part(part, contents)
    return contents


def _numbered(
    contents: Mapping[str, Contents], labels: Labels, where: str
) -> tuple[dict[str, Rows], list[str], list[str]]:
    """Return the rows of each tar with the numbers of classes, the classes' names, and what is to be said of them."""
    if any(content.names for content in contents.values()):
        of_tar = {name: content.names or _as_names(content.rows, labels) for name, content in contents.items()}
        used = {of_tar[name][label] for name, content in contents.items() for label in np.unique(content.rows["label"])}
        classes = list(labels.names) or sorted(used)
        if unknown := used.difference(classes):
            raise ShardError(f"{where}: labels are {shown(unknown)}, none of the {len(classes)} names of the classes.")
        number = {name: position for position, name in enumerate(classes)}
        rows = {}
        for name, content in contents.items():
            rows[name] = content.rows.copy()
            if len(content.rows):
                numbers = np.array([number.get(label, -1) for label in of_tar[name]], dtype=np.int32)
                rows[name]["label"] = numbers[content.rows["label"]]
        numeric = [name for name in classes if name.isdecimal()]
        notes = [NUMBERS_AS_NAMES] if classes == numeric != sorted(classes, key=int) else []
        if numeric and len(numeric) < len(classes) and not labels.names:
            notes.append(f"Some labels are numbers and others are names ({shown(classes)}): all are taken as names.")
        return rows, classes, notes
    found = np.unique(np.concatenate([content.rows["label"] for content in contents.values()]))
    if found[0] > 0 and not labels.names and labels.first is None:
        raise ShardError(
            f"{where}: labels go from {found[0]} to {found[-1]}. Which number does the first class have?\n"
            f"If it is the lowest one: vitrail shards index {where} --data.first-label {found[0]}\n"
            f"If it is 0, and the first classes have no sample: vitrail shards index {where} --data.first-label 0"
        )
    rows = {name: content.rows for name, content in contents.items()}
    if labels.names:
        return rows, list(labels.names), []
    first, notes = labels.first or 0, []
    if gaps := found[-1] + 1 - len(found):
        absent = np.setdiff1d(np.arange(found[-1] + 1), found)
        notes.append(f"{gaps} numbers below the highest label have no sample, the first is {absent[0] + first}.")
    return rows, [str(label + first) for label in range(found[-1] + 1)], notes


def _as_names(rows: Rows, labels: Labels) -> tuple[str, ...]:
    """Return names for labels that are numbers, where those of other tars are names."""
    return tuple(str(label + (labels.first or 0)) for label in range(int(rows["label"].max(initial=-1)) + 1))


def _notes_of_rest(contents: Mapping[str, Contents]) -> list[str]:
    """Return what lies in the tars beside images and labels, a sentence for all of it."""
    left: Counter[str] = Counter()
    for content in contents.values():
        left.update(content.left)
    if not left:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left.items()))
    return [f"Left alone in the tars: {kinds}."]


def _former(folder: Path) -> Head | None:
    """Return the dataset.json that a folder has, None where there is none that is whole.  Raises ShardError."""
    try:
        return read_head(folder)
    except (FileNotFoundError, DamagedFile):
        return None


def _of_same_tars(former: Head, splits: Mapping[str, Index]) -> bool:
    """Return whether the splits that a data set had and has are those that it had, and there is one."""
    both = former["splits"].keys() & splits.keys()
    return bool(both) and all(former["splits"][name]["fingerprint"] == splits[name].fingerprint for name in both)
