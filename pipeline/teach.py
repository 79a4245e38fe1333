"""Filling a store with a teacher's answers, without training a student: for one job, or many beside each other."""

from pipeline.batch import TrainingBatches, as_seen, load
from pipeline.hosting import build_accelerator, loader_workers, resolve_precision
from pipeline.request import Request
from pipeline.session import open_answers
from pipeline.teacher import teacher_weights
from shards.dataset import Dataset
from shards.progress import progress


def teach(request: Request, dataset: Dataset, *, part: int, parts: int) -> int:
    """Ask the teacher for every view of a recipe that is not answered yet, and return how many were.

    Of the files of the store, an epoch of a virtual rank each, this is part `part` of `parts`.
    """
    recipe, index = request.recipe, dataset.splits["train"]
    accelerator = build_accelerator(resolve_precision(recipe.precision))
    fingerprints = {"train": index.fingerprint, "teacher": teacher_weights(recipe.distill)}
    answers = open_answers(recipe, index, accelerator, fingerprints)
    assert answers
    assert answers.store
    batches = TrainingBatches(recipe, index)
    steps = batches.order.steps_per_epoch
    files = [
        (epoch, rank)
        for epoch in range(recipe.distill.store_epochs or recipe.epochs)
        for rank in range(recipe.virtual_ranks)
    ]
    places = [
        (step, rank)
        for epoch, rank in files[part::parts]
        if not answers.store.whole(epoch, rank)
        for step in range(epoch * steps, (epoch + 1) * steps)
        if answers.store.read(step, rank) is None
    ]
    workers = loader_workers(recipe.data.workers)
    loader = load(batches, places, workers=workers, pin_memory=accelerator.device.type == "cuda")
    try:
        for batch in progress(loader, len(places), "asking the teacher"):
            answers.of(batch, as_seen(batch, recipe.model, accelerator.device))
    finally:
        answers.flush()
    return len(places) * recipe.rank_batch
