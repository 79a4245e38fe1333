"""The exceptions that users meet; those of training are in `pipeline/errors.py`.

VitrailError
├── BadRequest        the request was wrong; carries every problem found (exit code 2)
├── SourceError       images offered to `vitrail shards build` cannot be used
├── ShardError        a tar or its index is missing, torn or altered
├── SampleError       one sample cannot be used: wrong bytes, or no image in them
└── DamagedFile       a file of ours is not as it was written
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

KEPT: Final = "\n\u200c\u200d"  # of the characters that control: a line's end, and what joins letters and emoji


class Problem(NamedTuple):
    """One thing that is wrong with a request."""

    field: str  # dotted name of a recipe's field, or name of an option; empty where it concerns none alone
    sentence: str  # what is wrong and what to do

    def __str__(self) -> str:
        return self.sentence


class VitrailError(Exception):
    """Something a user can mend; the message says what happened, where, and what to do."""


class BadRequest(VitrailError):
    """The request was wrong.  `problems` holds all that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problem.sentence for problem in self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[list[Problem]]]:
        return type(self), (self.problems,)  # so that one process can hand it to others

    @classmethod
    def of(cls, field: str, sentence: str) -> Self:
        """Return the refusal for one problem."""
        return cls([Problem(field, sentence)])


class SourceError(VitrailError):
    """Images offered to `vitrail shards build` cannot be used."""


class ShardError(VitrailError):
    """A tar or its index is missing, torn or altered."""


class SampleError(VitrailError):
    """One sample cannot be used."""


class DamagedFile(VitrailError):
    """A file of ours is not as it was written."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: torn or altered ({reason}).")

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


def harmless(text: object) -> str:
    """Return text for a terminal: what controls one, which names out of data may hold, as escapes; line ends stay."""
    return "".join(char if char in KEPT or not unicodedata.category(char).startswith("C") else ascii(char)[1:-1]
                   for char in str(text))  # fmt: skip
