"""Records: what a batch holds, in one piece of memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.data.loader import load
from pipeline.data.record import Records, eval_record, view_record


@pytest.mark.parametrize("size", [8, 9, 15, 224])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_field_is_the_same_for_numpy_and_for_torch(size: int, count: int) -> None:
    for kind in (view_record(size), eval_record(size)):
        records = Records.room(count, kind)
        assert not records.block.any()
        drawn = np.random.default_rng(0)
        for name in kind.names or ():
            records.host[name] = drawn.integers(100, size=records.host[name].shape)
        for name in kind.names or ():
            field = records.field(name)
            assert field.shape == records.host[name].shape
            assert torch.equal(field, torch.from_numpy(records.host[name].copy()))
        assert records.field("pixels").shape == (count, size, size, 3)


def test_a_record_holds_numbers_that_fill_their_types() -> None:
    records = Records.room(2, view_record(9))
    records.host["key"] = -(2**63), 2**63 - 1
    records.host["lam"] = 1 / 3
    assert records.field("key").tolist() == [-(2**63), 2**63 - 1]
    assert records.field("lam").tolist() == [np.float32(1 / 3)] * 2


def test_fields_are_views_of_one_piece_of_memory_before_and_after_it_moves() -> None:
    records = Records.room(3, view_record(9))
    records.host["label"] = 1, 2, 3
    for its in (records, records.first(2), records.to(torch.device("cpu"))):
        storages = {its.field(name).untyped_storage().data_ptr() for name in its.kind.names or ()}
        assert storages == {its.block.untyped_storage().data_ptr()}
    assert records.first(2).field("label").tolist() == [1, 2]


@pytest.mark.dist
def test_records_come_from_a_worker_as_it_wrote_them() -> None:
    class Written(Dataset[Records]):
        def __getitem__(self, number: int) -> Any:
            records = Records.room(3, eval_record(9))
            records.host["label"], records.host["pixels"] = number, number + 1
            return records.block.is_shared(), records.first(2)

        def __len__(self) -> int:
            return 2

    for number, (shared, records) in enumerate(load(Written(), range(2), workers=1, pin_memory=False)):
        assert shared
        assert records.host["label"].tolist() == [number] * 2
        assert set(records.field("pixels").flatten().tolist()) == {number + 1}
