"""What is known of a recipe's field beside its type: its role, its range, and when it means something.

Each fact stands beside its field in `pipeline/config.py`, as metadata of the annotation; `facts` collects them, and
every list of fields is derived from what it returns.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Final, NamedTuple, get_type_hints


class Role(Enum):
    """What a field decides."""

    VIEW = "views"  # which views there are, or what a teacher says of them; and so the weights
    RUN = "weights"  # the weights alone
    FREE = "neither"  # how a run is hosted, watched or saved: it may change when the run goes on


VIEW, RUN, FREE = Role


class Cost(Enum):
    """Marks the fields that decide how long a step takes, or how much memory."""

    COST = "cost"


COST: Final = Cost.COST


class Says(Enum):
    """Marks texts by what they say."""

    PLACE = "where something lies on this machine"


Place = Annotated[str, Says.PLACE]


@dataclass(frozen=True)
class Range:
    """What a number may be, or each of several; None stands for something else and is always allowed."""

    low: float = -math.inf
    high: float = math.inf
    excluded: bool = False  # `low` itself is not allowed
    ascending: bool = False  # of two, the first is not the larger
    note: str = ""  # after the bounds

    def complaint(self, value: Any) -> str:
        """Return what is wrong with a value, as the end of a sentence; empty if nothing is."""
        numbers = [number for number in (value if isinstance(value, tuple | list) else (value,)) if _is_number(number)]
        if not all(math.isfinite(number) and self._holds(number) for number in numbers):
            return f"must {self}"
        if self.ascending and sorted(numbers) != numbers:
            return "must not fall from the first to the second"
        return ""

    def _holds(self, number: float) -> bool:
        return number <= self.high and (number > self.low if self.excluded else number >= self.low)

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return "be finite"
        if self.high == math.inf:
            if self.low == 0:
                return "be more than 0" if self.excluded else "not be negative"
            return f"be {'more than' if self.excluded else 'at least'} {self.low:g}"
        return f"lie between {self.low:g}{' (not itself)' if self.excluded else ''} and {self.high:g}{self.note}"


FINITE: Final = Range()
POSITIVE: Final = Range(0, excluded=True)
NOT_NEGATIVE: Final = Range(0)
AT_LEAST_1: Final = Range(1)
SHARE: Final = Range(0, 1)
POSITIVE_SHARE: Final = Range(0, 1, excluded=True)


@dataclass(frozen=True)
class OnlyWith:
    """The field means something only where another one has one of some values; without values, where it is set."""

    field: str
    values: tuple[Any, ...] = ()


class Field(NamedTuple):
    """All that is known of a field of a recipe."""

    name: str  # dotted
    default: Any  # None where the recipe must say it
    role: Role
    range: Range | None
    cost: bool
    place: bool
    only_with: tuple[OnlyWith, ...]


def facts(recipe: type, prefix: str = "") -> dict[str, Field]:
    """Return the facts of every field of a dataclass and of those in it, by dotted name."""
    found: dict[str, Field] = {}
    hints = get_type_hints(recipe, include_extras=True)
    for item in fields(recipe):
        hint = hints[item.name]
        if is_dataclass(hint):
            found |= facts(hint, f"{prefix}{item.name}.")  # type: ignore[arg-type]
            continue
        metadata = getattr(hint, "__metadata__", ())
        (role,) = (mark for mark in metadata if isinstance(mark, Role))
        found[prefix + item.name] = Field(
            name=prefix + item.name,
            default=None if item.default is MISSING else item.default,
            role=role,
            range=next((mark for mark in metadata if isinstance(mark, Range)), None),
            cost=COST in metadata,
            place=Says.PLACE in metadata,
            only_with=tuple(mark for mark in metadata if isinstance(mark, OnlyWith)),
        )
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted field name: value} of a recipe, or of one read back from JSON; tuples become lists."""
    pairs: Mapping[str, Any] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    flat: dict[str, Any] = {}
    for name, item in pairs.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(item) if isinstance(item, tuple) else item
    return flat


def flag(name: str) -> str:
    """Return a dotted field name as it is written on the command line, without dashes before it."""
    return name.replace("_", "-")


def written(name: str, value: Any) -> str:
    """Return how a field is given a value on the command line."""
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return f"--{flag(f'{group}.' if group else '')}{'' if value else 'no-'}{flag(last)}"
    values = value if isinstance(value, tuple | list) else (value,)
    return " ".join([f"--{flag(name)}", *(str(item) for item in values)])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Yield, in order, the names under which two mappings hold something else."""
    return (name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name))
