import numpy as np
import pytest
import torch

from pipeline.device_randomness import kept_of, normals, skipping, uniforms
from pipeline.randomness import FACTORS, GOLDEN, Purpose, view_keys

KEYS = torch.from_numpy(view_keys(0, 0, np.arange(2000), np.zeros(2000, dtype=np.int64)))


def test_device_draws_follow_their_distributions() -> None:
    # 2000 x 50 draws: the standard error of a mean is 0.003 for normals, 0.001 for uniforms
    u, n = uniforms(KEYS, Purpose.DROP_PATH, 50), normals(KEYS, Purpose.ERASE, torch.arange(50))
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert n.mean().item() == pytest.approx(0, abs=0.015)
    assert n.std().item() == pytest.approx(1, abs=0.015)
    assert torch.isfinite(n).all()
    assert torch.corrcoef(n.T[:5]).fill_diagonal_(0).abs().max() < 0.1
    assert torch.corrcoef(n[:5]).fill_diagonal_(0).abs().max() < 0.7


def test_device_draws_do_not_depend_on_their_neighbours_in_the_batch() -> None:
    draws = torch.arange(20)
    assert torch.equal(normals(KEYS[5:9], Purpose.ERASE, draws), normals(KEYS, Purpose.ERASE, draws)[5:9])
    assert not torch.equal(uniforms(KEYS, Purpose.DROP_PATH, 4), uniforms(KEYS, Purpose.ERASE, 4))


def test_a_draw_is_a_function_of_its_key_and_number_alone() -> None:
    all_draws = normals(KEYS[:4], Purpose.ERASE, torch.arange(30))
    numbers = torch.tensor([7, 0, 22])
    assert torch.equal(normals(KEYS[:4], Purpose.ERASE, numbers), all_draws[:, numbers])
    skipped = torch.tensor([0, 7, 3, 5])
    later = normals(skipping(KEYS[:4], skipped), Purpose.ERASE, numbers)
    assert torch.equal(later, all_draws.gather(1, skipped[:, None] + numbers))


def test_device_draws_are_those_of_splitmix64_in_unbounded_integers() -> None:
    for key, draw in zip(KEYS[:50].tolist(), uniforms(KEYS[:50], Purpose.DROP_PATH, 3).tolist(), strict=True):
        for number, value in enumerate(draw, 1):
            bits = (key + (number + (Purpose.DROP_PATH << 40)) * GOLDEN) % 2**64
            for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
                bits = (bits ^ bits >> shift) * factor % 2**64
            assert value == ((bits ^ bits >> 31) >> 40) / 2**24


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.99])
def test_what_is_kept_is_kept_at_its_rate_and_independently(rate: float) -> None:
    kept = kept_of(KEYS, Purpose.DROPOUT, rate, 50)
    # 100,000 draws: five standard errors, and of 2,000 those of a place or of a pair of places
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / 1e5) ** 0.5)
    assert kept.float().mean(0).numpy() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / 2e3) ** 0.5)
    if rate:
        assert torch.corrcoef(kept.T[:9].float()).fill_diagonal_(0).abs().max() < 5 / 2e3**0.5
    assert torch.equal(kept_of(KEYS[5:9], Purpose.DROPOUT, rate, 7), kept[5:9, :7])
