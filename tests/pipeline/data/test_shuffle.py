"""The score of a shuffle: 1 for mixed shards, low for sorted ones, and the window that mends it."""

import time

import numpy as np
import pytest

from pipeline.data.order import Order
from pipeline.data.shuffle import ENOUGH, Shuffle, shuffle_of, shuffle_score

IMAGENET = Order(shard_sizes=(1281,) * 1000, seed=0, batch=1024, virtual_ranks=16, repeats=3)
SORTED = np.repeat(np.arange(1000, dtype=np.int32), 1281)
MIXED = np.random.default_rng(0).permutation(SORTED)


def an_order(window: int, **changes: object) -> Order:
    return Order(**{"shard_sizes": (500,) * 20, "seed": 1, "batch": 64, "virtual_ranks": 4, "window": window} | changes)


def test_mixed_shards_score_one_with_any_window() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 10_000)
    for window in (1, 16, 1000):
        assert shuffle_score(an_order(window), labels) == pytest.approx(1, abs=0.05)
    assert shuffle_score(IMAGENET, MIXED) == pytest.approx(1, abs=0.02)


def test_sorted_shards_score_more_the_larger_the_windows_are() -> None:
    labels = np.repeat(np.arange(10), 1000)
    scores = [shuffle_score(an_order(window), labels) for window in (8, 500, 1000, 2500)]
    assert scores == sorted(scores)
    # with a window of 8, a batch has the classes of 4 places on the disk: at most 4 in 10, and 5 where one ends
    assert scores[0] < 0.5
    assert scores[-1] > 0.95


def test_the_score_is_the_overlap_of_classes_over_that_of_random_draws() -> None:
    # one virtual rank and windows of a quarter of a class: a batch is of one class in four, or of two where it ends
    labels = np.repeat(np.arange(4), 1000)
    order = Order(shard_sizes=(1000,) * 4, seed=0, batch=250, virtual_ranks=1, window=250)
    assert shuffle_score(order, labels) == pytest.approx(0.3, abs=0.06)


def test_a_window_that_would_do_is_found_and_does() -> None:
    labels = np.repeat(np.arange(10), 1000)
    found = shuffle_of(an_order(8), labels)
    assert found.score < ENOUGH
    assert shuffle_score(an_order(found.enough), labels) >= ENOUGH
    assert shuffle_score(an_order(found.enough // 2), labels) < ENOUGH
    assert str(found).endswith(
        f"with --data.window 8: the shards are sorted by class, --data.window {found.enough} would do"
    )
    assert str(Shuffle(0.991, 8192, 8192)) == "0.99 of a random draw's mixture of classes, with --data.window 8192"


def test_the_small_windows_of_the_first_epoch_are_not_what_is_judged() -> None:
    labels = np.repeat(np.arange(10), 1000)
    assert shuffle_score(an_order(2500, cycle=1), labels) == shuffle_score(an_order(2500), labels)


def test_a_batch_of_all_samples_needs_no_shuffling() -> None:
    assert shuffle_of(an_order(8, batch=20_000), np.repeat(np.arange(10), 1000)) == Shuffle(1.0, 8, 8)


@pytest.mark.slow
def test_a_data_set_like_imagenet_is_judged_in_less_than_a_second() -> None:
    for labels in (MIXED, SORTED):
        started = time.process_time()
        found = shuffle_of(IMAGENET, labels)
        assert time.process_time() - started < 1
    assert found.score < 0.5
    assert found.enough > IMAGENET.window
