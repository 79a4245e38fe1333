"""Filling a store with a teacher's outputs, without training a student.

The work is shared by file of the store: between jobs beside each other, and between the processes of each. These wait
for nobody at the end, as one of them may have hours more to do than another.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler

from pipeline.data.batch import TrainingBatches
from pipeline.data.device import model_input, on_device
from pipeline.data.loader import load
from pipeline.devices import pins
from pipeline.errors import TrainingError
from pipeline.hosting import build_accelerator
from pipeline.job import Job
from pipeline.session.session import share_fingerprints
from pipeline.teacher.outputs import open_outputs
from shards.progress import progress


class Filled(NamedTuple):
    """What was stored, and what could not be."""

    outputs: int  # added
    left: int  # batches without outputs, as their samples cannot be used
    reasons: list[str]  # why not, of each such sample


class Missing(Sampler[tuple[int, int]]):
    """The (step, virtual rank) of outputs that are not there, by file: DeiT's 300 epochs are millions of them."""

    def __init__(self, files: list[tuple[Sequence[int], int]]) -> None:
        self._files = files

    def __len__(self) -> int:
        return sum(len(steps) for steps, _ in self._files)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, rank) for steps, rank in self._files for step in steps)


def fill_store(job: Job, *, part: int, parts: int) -> Filled:
    """Ask the teacher for every view of a recipe whose output is not stored yet.

    Of the files of the store, an epoch of a virtual rank each, this is part `part` of `parts`, and of that the share of
    this process.  Raises TrainingError where more samples cannot be used than the recipe allows.
    """
    recipe = job.recipe
    accelerator = build_accelerator(job.hosting, recipe.compute)
    job = share_fingerprints(job)
    outputs = open_outputs(recipe, job.order, job.store_fingerprint, accelerator, compiled=job.hosting.compiled)
    assert outputs.store, "a job that fills a store names one"
    files = [
        (epoch, rank)
        for epoch in range(recipe.distill.store_epochs or recipe.epochs)
        for rank in range(recipe.virtual_ranks)
    ]
    missing = Missing(
        [
            (outputs.store.missing(epoch, rank), rank)
            for epoch, rank in files[part::parts][job.hosting.process :: job.hosting.processes]
        ]
    )
    pin_memory = pins(accelerator.device)
    loader = load(
        TrainingBatches(recipe, job.index),
        missing,
        workers=job.hosting.workers,
        pin_memory=pin_memory,
        remote=job.index.cache is not None,
    )
    left = 0
    unusable: dict[int, str] = {}  # reasons, by sample
    try:
        # the main process has as many files as any other, or one more
        for batch in progress(loader, len(missing), "asking the teacher") if job.hosting.main else loader:
            unusable |= {found.sample: found.reason for found in batch.unusable}
            if too_many := recipe.data.too_many_bad(len(unusable), len(job.index)):
                raise TrainingError("\n".join([too_many, *unusable.values()]))
            if batch.replaced:
                left += 1
            else:
                images = model_input(on_device(batch, accelerator.device), recipe.model)
                outputs.of(batch, images, len(images))
    finally:
        outputs.flush()
    return Filled((len(missing) - left) * recipe.rank_batch, left, list(unusable.values()))
