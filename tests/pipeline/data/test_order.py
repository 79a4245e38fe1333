import pickle
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data import order
from pipeline.data.loader import StepSampler
from pipeline.data.order import Order, Views, order_of
from pipeline.hosting import hosted
from pipeline.randomness import view_keys
from shards.dataset import Dataset
from tests.reference.inputs import read
from tests.tiny import TINY


def an_order(**changes: object) -> Order:
    return Order(**{"shard_sizes": (30, 7, 41, 22), "seed": 3, "batch": 12, "virtual_ranks": 3, "window": 8} | changes)


orders = st.builds(
    Order,
    shard_sizes=st.lists(st.integers(1, 40) | st.integers(1, 900), min_size=1, max_size=8).map(tuple),
    seed=st.integers(0, 2**40),
    virtual_ranks=st.integers(1, 6),
    batch=st.just(0),
    repeats=st.integers(1, 4),
    window=st.integers(1, 50) | st.integers(200, 2000),
    epoch=st.sampled_from(["views", "images"]),
    cycle=st.integers(0, 2),
).flatmap(
    lambda order: st.integers(1, 5).map(
        lambda part: replace(order, batch=part * order.virtual_ranks),
    )
)


Topology = tuple[int, int, int]  # the steps at which a session's checkpoint is saved and it dies, and its processes


@st.composite
def sessions(draw: st.DrawFn, last: int) -> list[Topology]:
    """Sessions of a run, each of which goes on from the checkpoint of the one before, on processes of its own."""
    found, saved = [], 0
    for _ in range(draw(st.integers(0, 3))):
        saved = draw(st.integers(saved, last))
        found.append((saved, draw(st.integers(saved, last)), draw(st.integers(1, 6))))
    return [*found, (last, last, draw(st.integers(1, 6)))]


def epoch_views(order: Order, epoch: int) -> list[tuple[int, int]]:
    first = epoch * order.steps_per_epoch
    ranks = range(order.virtual_ranks if order.steps_per_epoch else 0)
    all_views = [order.views(first, rank, order.steps_per_epoch) for rank in ranks]
    return [pair for views in all_views for pair in zip(views.samples.tolist(), views.copies.tolist(), strict=True)]


@settings(max_examples=150, deadline=None)
@given(order=orders, epoch=st.integers(0, 3))
def test_in_an_epoch_no_view_is_shown_twice(order: Order, epoch: int) -> None:
    shown = Counter(epoch_views(order, epoch))
    assert set(shown.values()) <= {1}
    assert all(0 <= sample < order.num_samples and 0 <= copy < order.repeats for sample, copy in shown)


@settings(max_examples=100, deadline=None)
@given(order=orders)
def test_an_epoch_has_as_many_steps_as_whole_batches(order: Order) -> None:
    factor = order.repeats if order.epoch == "images" else 1
    per_rank = order.num_samples // order.virtual_ranks * factor
    assert order.steps_per_epoch == per_rank // (order.batch // order.virtual_ranks)
    if factor == 1:
        assert order.steps_per_epoch == order.num_samples // order.batch


def test_without_repeats_an_epoch_shows_all_but_less_than_a_batch() -> None:
    order = an_order()
    assert len(set(epoch_views(order, 0))) == 100 // 12 * 12


def test_the_copies_of_an_image_are_neighbours_in_one_virtual_rank() -> None:
    views = an_order(repeats=3, batch=36).views(0, 1)
    assert views.copies.tolist() == [0, 1, 2] * 4
    assert (views.samples.reshape(4, 3) == views.samples[::3, None]).all()


def test_an_epoch_of_views_shows_a_third_of_the_images_three_times() -> None:
    order = an_order(repeats=3, batch=9)
    samples = [sample for sample, _ in epoch_views(order, 0)]
    assert len(samples) == 99
    assert len(set(samples)) == 33


def test_an_epoch_of_images_shows_every_image_as_often_as_it_is_repeated() -> None:
    order = an_order(shard_sizes=(30, 6), repeats=3, batch=9, epoch="images")
    assert Counter(sample for sample, _ in epoch_views(order, 1)) == dict.fromkeys(range(36), 3)


REPEATS = read("repeats")


@pytest.mark.parametrize("name", REPEATS)
def test_images_are_repeated_as_often_as_by_the_official_sampler(name: str) -> None:
    """All counts of an epoch are deit's `RASampler`'s, but for where the copies of an image lie.

    There they are dealt out to the ranks in turn, so that a rank's B views are of B images. Here they are neighbours in
    a virtual rank, whose views are of B / r images, r times each. Where r does not divide a rank's views of an epoch,
    which is so for 3 ranks of 256 alone, its last image is shown less often.
    """
    its = REPEATS[name]
    images, ranks, repeats = its["images"], its["ranks"], its["repeats"]
    batch = 1024 if images > 1000 else 768 if ranks == 3 else 256
    order = Order(shard_sizes=(images,), seed=3, batch=batch, virtual_ranks=ranks, repeats=repeats)
    shown = []
    for number, expected in its["epochs"].items():
        epoch = [order.views(int(number) * order.steps_per_epoch, rank, order.steps_per_epoch) for rank in range(ranks)]
        assert [len(views.samples) for views in epoch] == expected["samples_per_rank"]
        samples = np.concatenate([views.samples for views in epoch])
        assert len(samples) == expected["views"]
        cut_off = ranks if expected["samples_per_rank"][0] % repeats else 0
        distinct, counts = np.unique(samples, return_counts=True)
        assert len(distinct) == -(-expected["views"] // (ranks * repeats)) * ranks
        assert len(distinct) - expected["distinct"] == (2 if cut_off else 0)
        assert (counts == repeats).sum() == len(distinct) - cut_off
        for views, alone in zip(epoch, expected["distinct_per_rank"], strict=True):
            assert len(np.unique(views.samples)) == -(-expected["samples_per_rank"][0] // repeats) <= alone
        shown.append(set(distinct.tolist()))
    for pair, common in its["images_in_common"].items():
        # two draws of a quarter, or of three quarters, of 1000 images: both theirs and ours vary by 7
        first, second = map(int, pair.split(","))
        assert len(shown[first] & shown[second]) == pytest.approx(common, abs=35)
    if len(shown) > 1:
        assert len(set.union(*shown)) == pytest.approx(its["images_seen_in_all_epochs_together"], abs=35)


def test_every_image_is_as_likely_as_any_other_to_be_shown() -> None:
    order = an_order(shard_sizes=(40, 20), repeats=3, batch=12)
    counts = np.zeros(60)
    for epoch in range(600):
        for sample, _ in epoch_views(order, epoch):
            counts[sample] += 1
    # each of 60 images is in a third of 600 epochs: 200 times, with a standard deviation of 11.5
    assert abs(counts / 3 - 200).max() < 60


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = an_order()
    assert epoch_views(first, 0) != epoch_views(first, 1)
    # seed + epoch would make these two equal
    assert epoch_views(an_order(seed=4), 0) != epoch_views(first, 1)


def test_a_subset_is_chosen_by_the_seed_and_ordered_like_all() -> None:
    order = an_order(subset=40)
    samples = {sample for sample, _ in epoch_views(order, 0)}
    assert len(samples) == 36  # 40, in whole batches of 12
    seen = {sample for epoch in range(20) for sample, _ in epoch_views(order, epoch)}
    assert len(seen) == 40
    assert max(seen) > 50
    assert seen != {sample for epoch in range(20) for sample, _ in epoch_views(an_order(subset=40, seed=9), epoch)}


def test_a_cyclic_order_shows_the_same_views_again() -> None:
    order, cyclic = an_order(), an_order(cycle=2)
    for epoch in range(5):
        assert epoch_views(cyclic, epoch) == epoch_views(order, epoch % 2)
    assert cyclic.views(2 * order.steps_per_epoch + 1, 0)[:2] == (1, 0)


def test_the_order_is_what_it_was_when_these_numbers_were_written_down() -> None:
    # a change here breaks the resumption of every run in the world: raise the format version of checkpoints
    assert an_order(batch=24).views(9, 2).samples.tolist() == GOLDEN
    assert view_keys(3, 1, np.array([5]), np.array([2])).tolist() == [GOLDEN_KEY]


GOLDEN = [74, 76, 0, 3, 77, 1, 2, 75]
GOLDEN_KEY = -2923062551523012565


def windows(order: Order, epoch: int) -> list[tuple[int, int]]:
    """Start and size of the windows of a span, one after the other."""
    found, position = [], 0
    while position < order.span:
        number, start, size = order.window_at(epoch, position)
        assert (number, start) == (len(found), position)
        assert all(order.window_at(epoch, inside) == (number, start, size) for inside in (start, start + size - 1))
        found.append((start, size))
        position += size
    return found


def test_the_first_epoch_begins_with_small_windows_that_double() -> None:
    order = an_order(shard_sizes=(9000,), window=1500)
    assert windows(order, 0) == [(0, 256), (256, 512), (768, 1024), (1792, 1208)]
    assert windows(order, 1) == windows(order, 5) == [(0, 1500), (1500, 1500)]
    assert windows(replace(order, window=1024), 0) == [(0, 256), (256, 512), (768, 1024), (1792, 1024), (2816, 184)]
    assert windows(replace(order, window=256), 0) == windows(replace(order, window=256), 1)


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 9000), window=st.integers(1, 3000), epoch=st.integers(0, 2))
def test_windows_lie_end_to_end_and_fill_a_span(samples: int, window: int, epoch: int) -> None:
    order = an_order(shard_sizes=(samples,), window=window, batch=1, virtual_ranks=1)
    found = windows(order, epoch)
    assert sum(size for _, size in found) == order.span
    assert all(size <= window for _, size in found)
    if epoch == 0 and len(found) > 1:
        assert found[0][1] == min(window, 256)


def test_samples_are_shuffled_within_their_window_alone() -> None:
    order = an_order(shard_sizes=(9000,), window=700, batch=30, virtual_ranks=3)
    for epoch in (0, 1):
        first = epoch * order.steps_per_epoch
        seen = order.views(first, 1, order.steps_per_epoch).samples
        line = np.sort(order.views(first, 0, order.steps_per_epoch).samples)
        assert len(np.intersect1d(seen, line)) == 0
        for start, size in windows(order, epoch):
            inside = np.sort(seen[start : start + size])
            # one shard: a window is a stretch of it, which may go over its end
            assert (np.diff(inside) != 1).sum() <= 1
            assert (seen[start : start + size] != inside).any()


def test_the_first_batch_of_a_fresh_run_lies_in_two_shards_a_virtual_rank_at_most() -> None:
    order = an_order(shard_sizes=(1000,) * 400, virtual_ranks=16, batch=1024, window=8192)
    for rank in range(16):
        assert len(np.unique(order.views(0, rank).samples // 1000)) <= 2
        assert len(np.unique(order.views(order.steps_per_epoch, rank).samples // 1000)) > 6


@settings(max_examples=100, deadline=None)
@given(order=orders, data=st.data())
def test_several_steps_at_once_are_those_steps_one_after_the_other(order: Order, data: st.DataObject) -> None:
    if not order.steps_per_epoch:
        return
    first = data.draw(st.integers(0, order.steps_per_epoch - 1))
    steps = data.draw(st.integers(1, order.steps_per_epoch - first))
    first += order.steps_per_epoch * data.draw(st.integers(0, 2))
    together = order.views(first, 0, steps)
    single = [order.views(step, 0) for step in range(first, first + steps)]
    assert together[:2] == single[0][:2]
    for name in ("samples", "copies"):
        expected = np.concatenate([getattr(views, name) for views in single])
        assert (getattr(together, name) == expected).all()


@settings(max_examples=300, deadline=None)
@given(order=orders, data=st.data())
def test_sessions_on_any_hosting_concatenate_to_the_unbroken_run(order: Order, data: st.DataObject) -> None:
    if not order.steps_per_epoch:
        return
    first = data.draw(st.integers(0, 3 * order.steps_per_epoch), label="first step")
    last = first + data.draw(st.integers(1, 25), label="steps")
    seen: dict[tuple[int, int], Views] = {}
    begun = first
    for saved, died, processes in data.draw(sessions(last - first), label="saved, died, processes"):
        fresh = replace(order)  # a process that starts anew has computed nothing
        for process in range(processes):
            ranks = hosted(order.virtual_ranks, processes, process)
            for step, rank in StepSampler(range(begun, first + died), ranks):
                views = fresh.views(step, rank)
                if step < first + saved:  # what comes after it is trained again
                    assert (step, rank) not in seen, "twice"
                    seen[step, rank] = views
        begun = first + saved
    unbroken = {(step, rank): order.views(step, rank)
                for step, rank in StepSampler(range(first, last), range(order.virtual_ranks))}  # fmt: skip
    assert seen.keys() == unbroken.keys()
    for place, views in unbroken.items():
        assert seen[place][:2] == views[:2]
        assert (seen[place].samples == views.samples).all()
        assert (seen[place].copies == views.copies).all()


@settings(max_examples=200, deadline=None)
@given(order=orders, epoch=st.integers(0, 3))
def test_a_virtual_rank_sees_its_span_of_the_line_window_by_window(order: Order, epoch: int) -> None:
    if not order.steps_per_epoch:
        return
    order = replace(order, cycle=0)
    # the line, as the docs say it: the shards of an epoch end to end, turned, and cut into spans
    positions, _ = order._samples(epoch, np.arange(order.num_samples))
    for rank in range(order.virtual_ranks):
        span = positions[rank * order.span : (rank + 1) * order.span]
        views = order.views(epoch * order.steps_per_epoch, rank, order.steps_per_epoch)
        shown = views.samples[:: order.repeats]
        if order.repeats > 1:
            assert (views.samples == np.repeat(shown, order.repeats)[: len(views.samples)]).all()
        for start, size in windows(order, epoch):
            inside = shown[start : start + size]
            assert np.isin(inside, span[start : start + size]).all()
            assert len(np.unique(inside)) == len(inside)


@settings(max_examples=100, deadline=None)
@given(order=orders, epoch=st.integers(0, 3))
def test_the_line_of_an_epoch_has_every_sample_once_and_shards_whole(order: Order, epoch: int) -> None:
    line, _ = order._samples(epoch, np.arange(order.num_samples))
    assert (np.sort(line) == np.arange(order.num_samples)).all()
    # a shard goes on where it left off, but for the one that the turn cuts
    assert (np.diff(line) != 1).sum() <= len(order.shard_sizes)


@pytest.mark.slow
def test_a_step_of_a_million_shards_costs_less_than_a_millisecond_after_the_first() -> None:
    order = an_order(shard_sizes=(10_000,) * 10**6, virtual_ranks=16384, batch=16384 * 64, window=8192)
    order.views(5000, 77)
    started = time.perf_counter()
    for step in range(5000, 5200):
        order.views(step, 77)
    assert (time.perf_counter() - started) / 200 < 1e-3
    sent = pickle.dumps(order)
    assert len(sent) < 4e6  # without what was computed of it
    assert (pickle.loads(sent).views(5000, 77).samples == order.views(5000, 77).samples).all()


@pytest.mark.dist
def test_an_order_is_looked_at_without_torch() -> None:
    program = "import sys, pipeline.data.order; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_memory_does_not_grow_with_the_samples() -> None:
    peaks = []
    for samples in (40_000, 400_000_000):
        order = an_order(shard_sizes=(samples, 7, 41, 22), window=4096, batch=12)
        tracemalloc.start()
        for step in (0, 1, 1000):
            order.views(step, 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize("step", [0, 7, 8, 8_000])
def test_any_step_is_reached_without_the_ones_before_it(step: int) -> None:
    walked = an_order()
    for before in range(min(step, 40)):
        walked.views(before, 0)
    after_others = walked.views(step, 0).samples.tolist()
    for cached in (order._chosen, order._line, order._permutation):
        cached.cache_clear()  # else this would compare what was kept with itself
    assert an_order().views(step, 0).samples.tolist() == after_others


def skewed(**changes: Any) -> tuple[Order, NDArray[np.int64]]:
    """Return an order of 100 samples of 5 classes, of which one has no image and one has a single one."""
    labels = np.repeat([0, 1, 2, 4], [70, 24, 5, 1])
    return an_order(labels=labels, **changes), labels


def line_of(order: Order, epoch: int) -> Views:
    """Return all views of an epoch, of all virtual ranks."""
    parts = [
        order.views(epoch * order.steps_per_epoch, rank, order.steps_per_epoch) for rank in range(order.virtual_ranks)
    ]
    samples, copies = (np.concatenate([getattr(part, name) for part in parts]) for name in ("samples", "copies"))
    return Views(0, epoch, samples, copies)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_balanced_order_shows_each_class_equally_often_in_an_epoch_of_the_same_length(epoch: int) -> None:
    order, labels = skewed(batch=25, virtual_ranks=1)
    plain = replace(order, labels=None)
    assert (order.steps_per_epoch, order.num_samples) == (plain.steps_per_epoch, plain.num_samples)
    views = line_of(order, epoch)
    assert np.bincount(labels[views.samples]).tolist() == [25, 25, 25, 0, 25]
    assert len(set(zip(views.samples.tolist(), views.copies.tolist(), strict=True))) == 100  # no view comes twice
    (single,) = np.nonzero(labels == 4)[0].tolist()
    assert sorted(views.copies[views.samples == single].tolist()) == list(range(25))


def test_what_is_left_over_of_a_balanced_epoch_goes_to_other_classes_each_time() -> None:
    order, labels = skewed(batch=33, virtual_ranks=1, subset=99)
    counts = [np.bincount(labels[line_of(order, epoch).samples], minlength=5) for epoch in range(12)]
    assert all(sorted(of_epoch.tolist())[1:] == [24, 25, 25, 25] for of_epoch in counts)
    assert len({int(np.argmax(of_epoch == 24)) for of_epoch in counts}) > 1


def test_a_balanced_epoch_shows_others_of_a_frequent_class_each_time() -> None:
    order, labels = skewed(batch=25, virtual_ranks=1)
    shown = [
        set(line_of(order, epoch).samples[labels[line_of(order, epoch).samples] == 0].tolist()) for epoch in (0, 1)
    ]
    assert [len(of_epoch) for of_epoch in shown] == [25, 25]
    assert shown[0] != shown[1]


def test_a_balanced_order_repeats_images_and_takes_subsets_as_any_other() -> None:
    order, labels = skewed(batch=12, virtual_ranks=2, repeats=3, subset=60, epoch="images", window=16)
    assert order.steps_per_epoch == 15
    views = line_of(order, 1)
    chosen = order.chosen
    assert chosen is not None
    assert set(views.samples.tolist()) <= set(chosen.tolist())
    present = len(set(labels[chosen].tolist()))
    assert np.bincount(labels[views.samples], minlength=5).max() == 3 * -(-60 // present)
    # copies of one place of the line are neighbours: one decode for all
    assert (views.samples.reshape(-1, 3) == views.samples.reshape(-1, 3)[:, :1]).all()
    assert (views.copies.reshape(-1, 3) - views.copies.reshape(-1, 3)[:, :1] == [0, 1, 2]).all()


def test_labels_lie_in_the_index_and_are_copied_for_a_balanced_order_alone(dataset: Dataset) -> None:
    index = dataset.splits["train"]
    labels = index.known_labels
    assert labels is not None
    assert np.shares_memory(labels, index.rows)
    assert order_of(TINY, index.shard_sizes, labels).labels is None
    balanced = order_of(replace(TINY, data=replace(TINY.data, balance=True)), index.shard_sizes, labels)
    assert balanced.labels is not None
    assert balanced.labels.tolist() == labels.tolist()


def test_a_balanced_order_knows_its_shards_and_is_the_same_in_any_object() -> None:
    order, _ = skewed(batch=12, virtual_ranks=3, window=8)
    again, _ = skewed(batch=12, virtual_ranks=3, window=8)
    starts = np.cumsum((0, *order.shard_sizes))
    for step in range(2 * order.steps_per_epoch):
        for rank in range(3):
            views = order.views(step, rank)
            assert views.samples.tolist() == again.views(step, rank).samples.tolist()
            shards = set((np.searchsorted(starts, views.samples, side="right") - 1).tolist())
            assert shards <= set(order.shards_ahead(step, rank, 3))
            others = list(order.others(step, rank, 0))
            assert len(others) == order.span - 1
