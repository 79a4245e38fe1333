"""The exceptions that users meet.

VitrailError
├── BadRequest        the request was wrong; carries every problem found (exit code 2)
├── SourceError       images offered to `vitrail shards build` cannot be used
├── ShardError        a tar or its index is missing, torn or altered
├── SampleError       one sample cannot be used: wrong bytes, or no image in them
├── CheckpointError   no checkpoint fits, or the one named is torn
├── StoreError        a store of a teacher's answers is torn, or of other views
└── TrainingError     the run cannot go on: a non-finite loss, too many bad samples
"""


class VitrailError(Exception):
    """Something a user can mend; the message says what happened, where, and what to do."""


class BadRequest(VitrailError):
    """The request was wrong.  `problems` holds all that was found, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SourceError(VitrailError):
    """Images offered to `vitrail shards build` cannot be used."""


class ShardError(VitrailError):
    """A tar or its index is missing, torn or altered."""


class SampleError(VitrailError):
    """One sample cannot be used."""


class CheckpointError(VitrailError):
    """No checkpoint fits the run, or the one named is torn."""


class StoreError(VitrailError):
    """A store of a teacher's answers is torn, or holds something else."""


class TrainingError(VitrailError):
    """The run cannot go on."""
