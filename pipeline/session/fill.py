"""Filling a store with a teacher's outputs, without training a student: for one job, or many beside each other."""

from pipeline.data.batch import TrainingBatches
from pipeline.data.device import model_input
from pipeline.data.loader import load
from pipeline.hosting import build_accelerator
from pipeline.job import Job
from pipeline.session.session import share_fingerprints
from pipeline.teacher.outputs import open_outputs
from shards.progress import progress


def fill_store(job: Job, *, part: int, parts: int) -> int:
    """Ask the teacher for every view of a recipe whose output is not stored yet, and return how many were.

    Of the files of the store, an epoch of a virtual rank each, this is part `part` of `parts`.
    """
    recipe, steps = job.recipe, job.order.steps_per_epoch
    accelerator = build_accelerator(job.hosting, recipe.compute)
    job = share_fingerprints(job)
    outputs = open_outputs(recipe, job.order, job.store_fingerprint, accelerator)
    assert outputs.store, "a job that fills a store names one"
    files = [
        (epoch, rank)
        for epoch in range(recipe.distill.store_epochs or recipe.epochs)
        for rank in range(recipe.virtual_ranks)
    ]
    missing = [
        (step, rank)
        for epoch, rank in files[part::parts]
        if not outputs.store.whole(epoch, rank)
        for step in range(epoch * steps, (epoch + 1) * steps)
        if outputs.store.read(step, rank) is None
    ]
    pin_memory = accelerator.device.type == "cuda"
    loader = load(TrainingBatches(recipe, job.index), missing, workers=job.hosting.workers, pin_memory=pin_memory)
    try:
        for batch in progress(loader, len(missing), "asking the teacher"):
            outputs.of(batch, model_input(batch, recipe.model, accelerator.device))
    finally:
        outputs.flush()
    return len(missing) * recipe.rank_batch
