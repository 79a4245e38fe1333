import numpy as np
import pytest
import torch

from pipeline.device_randomness import kept_of, normals, uniforms
from pipeline.randomness import Purpose, view_keys

KEYS = torch.from_numpy(view_keys(0, 0, np.arange(2000), np.zeros(2000, dtype=np.int64)))


def test_device_draws_follow_their_distributions() -> None:
    # 2000 x 50 draws: the standard error of a mean is 0.003 for normals, 0.001 for uniforms
    u, n = uniforms(KEYS, Purpose.DROP_PATH, 50), normals(KEYS, Purpose.ERASE, 50)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert n.mean().item() == pytest.approx(0, abs=0.015)
    assert n.std().item() == pytest.approx(1, abs=0.015)
    assert torch.isfinite(n).all()
    assert torch.corrcoef(n.T[:5]).fill_diagonal_(0).abs().max() < 0.1
    assert torch.corrcoef(n[:5]).fill_diagonal_(0).abs().max() < 0.7


def test_device_draws_do_not_depend_on_their_neighbours_in_the_batch() -> None:
    assert torch.equal(normals(KEYS[5:9], Purpose.ERASE, 20), normals(KEYS, Purpose.ERASE, 20)[5:9])
    assert not torch.equal(uniforms(KEYS, Purpose.DROP_PATH, 4), uniforms(KEYS, Purpose.ERASE, 4))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.99])
def test_what_is_kept_is_kept_at_its_rate_and_independently(rate: float) -> None:
    kept = kept_of(KEYS, Purpose.DROPOUT, rate, 50)
    # 100,000 draws: five standard errors, and of 2,000 those of a place or of a pair of places
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / 1e5) ** 0.5)
    assert kept.float().mean(0).numpy() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / 2e3) ** 0.5)
    if rate:
        assert torch.corrcoef(kept.T[:9].float()).fill_diagonal_(0).abs().max() < 5 / 2e3**0.5
    assert torch.equal(kept_of(KEYS[5:9], Purpose.DROPOUT, rate, 7), kept[5:9, :7])
