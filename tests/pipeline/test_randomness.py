import numpy as np

from pipeline.randomness import Generators, Purpose, generator, view_keys


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


def test_generators_that_are_set_anew_give_the_numbers_of_new_ones() -> None:
    several = Generators(5)
    for sample, copy in ((3, 1), (4, 300), (3, 1)):
        again = several.at(Purpose.AUGMENT, epoch=2, sample=sample, copy=copy)
        fresh = generator(5, Purpose.AUGMENT, epoch=2, sample=sample, copy=copy)
        # half of a 64-bit draw is kept for the next one of 32 bits, which must not reach the next site
        assert again.integers(9, size=7, dtype=np.int32).tolist() == fresh.integers(9, size=7, dtype=np.int32).tolist()
        assert again.normal(size=5).tolist() == fresh.normal(size=5).tolist()
