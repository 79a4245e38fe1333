"""The exceptions of training.

VitrailError (`shards/errors.py`)
├── CheckpointError   no checkpoint fits, or the one named is torn
├── LoaderError       the loader's workers cannot go on: killed, blocked, out of shared memory
├── StoreError        a store of outputs, a teacher's or a frozen prefix's, is torn, full, or of other views
└── TrainingError     the run cannot go on: a non-finite loss, too many unusable samples
"""

from shards.errors import VitrailError


class CheckpointError(VitrailError):
    """No checkpoint fits the run, or the one named is torn."""


class LoaderError(VitrailError):
    """The loader's workers cannot go on."""


class StoreError(VitrailError):
    """A store of outputs is torn, takes nothing, or holds something else."""


class TrainingError(VitrailError):
    """The run cannot go on."""
