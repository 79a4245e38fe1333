"""Batches: what is in the place of a sample that cannot be used, and what that costs."""

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.data.batch import TrainingBatches
from shards.dataset import Dataset
from shards.errors import SampleError, ShardError
from shards.reader import Reader
from tests.tiny import HERE


def batches(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, bad: range) -> tuple[TrainingBatches, Counter[int]]:
    """Return the tests' batches with unusable samples, and a count of the reads of each sample."""
    read, reads = Reader.read, Counter[int]()

    def counted(reader: Reader, sample: int) -> bytes:
        reads[sample] += 1
        if sample in bad:
            raise SampleError(f"sample {sample} is torn")
        return read(reader, sample)

    monkeypatch.setattr(Reader, "read", counted)
    recipe = replace(HERE, data=replace(HERE.data, epoch="images", max_bad=1.0))
    return TrainingBatches(recipe, dataset.splits["train"]), reads


def test_an_unusable_sample_is_tried_once_and_named_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = range(16, 32)  # a shard
    made, reads = batches(dataset, monkeypatch, bad)
    seen = [made[step, rank] for step in range(made.order.steps_per_epoch * 2) for rank in range(3)]
    assert {sample: reads[sample] for sample in bad} == dict.fromkeys(bad, 1)
    assert sorted(found.sample for batch in seen for found in batch.unusable) == list(bad)
    labels = dataset.splits["train"].rows["label"]
    replaced = 0
    for batch in seen:
        for slot in [slot for slot, sample in enumerate(batch.samples.tolist()) if sample in bad]:
            others = made.order.others(batch.step, batch.virtual_rank, slot)
            assert batch.labels[slot] == labels[next(other for other in others if other not in bad)]
            replaced += 1
    assert replaced


def test_a_split_without_a_usable_sample_ends_the_run_again_and_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = batches(dataset, monkeypatch, range(70))
    for step in (0, 1):
        with pytest.raises(
            ShardError, match=r"no sample of a virtual rank's whole span can be used\. sample \d+ is torn"
        ):
            made[step, 0]
