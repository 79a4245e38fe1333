"""The command line, a line a flag: `python -m tests.flags` writes tests/launch/flags.txt anew.

So a change of a flag, of what it takes, of its default or of its help is seen in a diff.
"""

import argparse
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import tyro

from launch.cli import VERBS, verb_named
from pipeline.config import FIELDS
from pipeline.fields import flag
from pipeline.request import Request
from shards.parallel import allowed_cores
from tests.tiny import TINY

FILE: Final = Path(__file__).parent / "launch" / "flags.txt"
COMMAND: Final = "python -m tests.flags"
NOTE: Final = re.compile(r"\(default: (.*)\)$|\((required)\)$", re.DOTALL)  # that tyro adds to a help


@dataclass(frozen=True)
class Flag:
    """A flag, or an argument without one."""

    name: str
    takes: str  # what follows it
    help: str
    default: str

    def __str__(self) -> str:
        words = " ".join(part for part in (self.name, self.takes) if part)
        return f"{words}  {self.help or '(no help)'}  [{self.default}]"


def recipe_flags() -> list[Flag]:
    """Return what every recipe takes: the run's own flags and the recipe's fields, with the fields' own defaults."""
    fields = {f"--{flag(name)}": field for name, field in FIELDS.items()}
    found = []
    for item in flags_of(parser(Request, default=Request(recipe=TINY))):
        if field := fields.get(item.name.split("|")[0]):
            said = field.default is not None or "{None}" in item.takes
            item = replace(item, default=str(field.default) if said else "the recipe says it")
        found.append(item)
    return found


def verb_flags() -> dict[str, list[Flag]]:
    """Return what each verb takes, by its words: `shards build`, `order`, ..."""
    found = {}
    for name in VERBS:
        its = parser(verb_named(name), config=(tyro.conf.OmitSubcommandPrefixes,))
        for words, inner in with_subcommands(name, its):
            found[words] = list(flags_of(inner))
    return found


def parser(kind: Any, **options: Any) -> argparse.ArgumentParser:
    """Return tyro's parser of a type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # another way to ask for all flags there is not yet
        return tyro.extras.get_parser(kind, **options)


def with_subcommands(words: str, its: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield a parser, or those of its subcommands."""
    inner = [action for action in its._actions if isinstance(action.choices, dict)]
    for action in inner:
        for name, chosen in action.choices.items():
            yield from with_subcommands(f"{words} {name}", chosen)
    if not inner:
        yield words, its


def flags_of(its: argparse.ArgumentParser) -> Iterator[Flag]:
    """Yield the flags and arguments of a parser."""
    for action in its._actions:
        if "--help" in action.option_strings:
            continue
        text = " ".join((action.help or "").split())
        note = NOTE.search(text)
        assert note, f"{action.option_strings}: {text!r} says nothing of a default"
        default = note[1] if note[2] is None else note[2]
        if "--processes" in action.option_strings and default == str(len(allowed_cores())):
            default = "a process a core"
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        name = "|".join(action.option_strings) or metavar
        yield Flag(name, metavar if action.option_strings else "", text[: note.start()].strip(), default)


def text() -> str:
    """Return the file."""
    sections = {"recipes/NAME.py": recipe_flags()}
    sections |= {f"vitrail {words}": flags for words, flags in verb_flags().items()}
    return "\n".join(f"{title}\n" + "".join(f"    {item}\n" for item in flags) for title, flags in sections.items())


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
