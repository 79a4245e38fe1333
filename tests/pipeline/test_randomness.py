import numpy as np
import pytest
import torch

from pipeline.randomness import Purpose, generator, normals, uniforms, view_keys

KEYS = torch.from_numpy(view_keys(0, 0, np.arange(2000), np.zeros(2000, dtype=np.int64)))


def test_every_part_of_a_key_changes_the_stream() -> None:
    sites = [
        (0, Purpose.AUGMENT, {}),
        (1, Purpose.AUGMENT, {}),
        (0, Purpose.ERASE, {}),
        (0, Purpose.AUGMENT, {"epoch": 1}),
        (0, Purpose.AUGMENT, {"sample": 1}),
        (0, Purpose.AUGMENT, {"copy": 1}),
    ]
    draws = {generator(seed, purpose, **rest).random() for seed, purpose, rest in sites}
    assert len(draws) == len(sites)


def test_seed_and_epoch_do_not_add_up() -> None:
    assert generator(0, Purpose.MIX, epoch=1).random() != generator(1, Purpose.MIX, epoch=0).random()
    assert view_keys(0, 1, np.arange(3), np.arange(3))[0] != view_keys(1, 0, np.arange(3), np.arange(3))[0]


def test_view_keys_differ_for_every_sample_copy_and_epoch() -> None:
    samples, copies = (part.ravel() for part in np.mgrid[:300, :3])
    keys = np.concatenate([view_keys(7, epoch, samples, copies) for epoch in range(5)])
    assert len(set(keys.tolist())) == 4500


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
