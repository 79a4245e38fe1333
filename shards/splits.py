"""Splits of a data set in other roles, or several as one: `train=train+val val=test`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from shards.arrange import shown, split_named
from shards.dataset import Dataset
from shards.errors import ShardError
from shards.index import Index, joined, starts_of
from shards.places import is_folder_name, short_hash
from shards.tars import may_be_tar

WILD: Final = "*?[{"  # in a pattern, and in no split's name


def names_splits(words: str) -> bool:
    """Return whether words of --data.splits say a role for splits (`train=train+val`), not for tars."""
    names = words.partition("=")[2].split("+")
    return all(is_folder_name(name) and not may_be_tar(name) and not set(WILD) & set(name) for name in names)


def rearranged(dataset: Dataset, said: Sequence[str]) -> Dataset:
    """Return a data set with its splits in the roles that are said; a split that is not named is left out.

    Raises ShardError for a split that it does not have, or that has two roles.
    """
    role_of: dict[str, str] = {}
    splits: dict[str, Index] = {}
    for words in said:
        named, _, names = words.partition("=")
        role = split_named(named) or named
        parts = []
        for name in names.split("+"):
            split = split_named(name) or name
            if split not in dataset.splits:
                raise ShardError(
                    f"{dataset.named}: --data.splits {words}: no split {name!r} there; it has {shown(dataset.splits)}."
                )
            if split in role_of:
                raise ShardError(f"{dataset.named}: --data.splits names {name} for {role_of[split]} and for {role}.")
            role_of[split] = role
            parts.append(dataset.splits[split])
        if role in splits:
            raise ShardError(f"{dataset.named}: --data.splits says twice what {role} is. Join splits: {role}=A+B")
        splits[role] = together(parts) if len(parts) > 1 else parts[0]
    return replace(dataset, splits=splits)


def together(parts: Sequence[Index]) -> Index:
    """Return the index of several splits of a data set as one, in their order."""
    first = parts[0]
    places = [part.place or str(part.folder) for part in parts]
    of_parts = [part.shards for part in parts]
    if len({*places}) > 1:  # each has its tars in a folder of its own, side by side
        of_parts = [
            tuple(replace(shard, name=f"{place.rpartition('/')[2]}/{shard.name}") for shard in of_part)
            for place, of_part in zip(places, of_parts, strict=True)
        ]
        places = [place.rpartition("/")[0] for place in places]
    shards = tuple(chain.from_iterable(of_parts))
    known = [part.known for part in parts if part.known is not None]
    return replace(
        first,
        folder=first.folder.parent / "+".join(part.folder.name for part in parts),
        shards=shards,
        known=joined(known) if known else None,
        starts=starts_of(shards),
        fingerprint=short_hash(json.dumps([part.fingerprint for part in parts])),
        place=places[0],
    )
