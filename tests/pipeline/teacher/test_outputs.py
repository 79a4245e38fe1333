"""What is kept of a teacher's outputs."""

import numpy as np
import pytest
import torch

from pipeline.config import Distill
from pipeline.teacher.outputs import from_records, to_records

RNG = np.random.default_rng(0)


LABEL_LOGITS, TAUGHT_LOGITS, TEACHER = (RNG.normal(size=(6, 7)) * 3 for _ in range(3))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_hard_outputs_come_back_as_they_are() -> None:
    logits = torch.randn(50, 40_000)
    hard = Distill(loss="hard")
    records = to_records(logits, hard).numpy().astype("uint16")
    assert (records > 0).all()
    assert torch.equal(from_records(torch.from_numpy(records.astype("int64")), 40_000, hard), logits.argmax(1))


@pytest.mark.parametrize("top", [1, 3, 7])
def test_soft_outputs_keep_the_top_and_spread_the_rest(top: int) -> None:
    soft = Distill(loss="soft", top=top)
    records = to_records(torch.from_numpy(TEACHER), soft).numpy().astype("uint16")
    assert records.shape == (6, 2 * top)  # 4 bytes a kept class
    back = from_records(torch.from_numpy(records.astype("int64")), 7, soft).exp().numpy()
    expected = softmax(TEACHER)
    order = np.argsort(-expected, 1)
    for row, exact, ranks in zip(back, expected, order, strict=True):
        np.testing.assert_allclose(row[ranks[:top]], exact[ranks[:top]], rtol=1e-3, atol=1e-6)
        assert np.ptp(row[ranks[top:]]) == 0 if top < 7 else True
    np.testing.assert_allclose(back.sum(1), 1, atol=2e-3)
