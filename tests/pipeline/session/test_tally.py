"""Views that are lost, repeated or exchanged end a run, with the virtual rank named; whole ones do on no hosting."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import checkpoint
from pipeline.data.batch import Batch, TrainingBatches
from pipeline.data.loader import StepSampler
from pipeline.data.order import Order
from pipeline.errors import LoaderError, TrainingError
from pipeline.hosting import hosted
from pipeline.session import tally
from pipeline.session.tally import Tally
from shards.dataset import Dataset
from tests.running import PROGRAMS, TIMEOUT, run, summary, train_here
from tests.tiny import STEPS

ORDER = Order(shard_sizes=(30, 7, 41, 22), seed=3, batch=12, virtual_ranks=3, repeats=2, window=8)  # 8 steps an epoch

Received = list[tuple[int, int, Any]]  # step, virtual rank, views


@dataclass
class Group:
    """Processes that add up what they know, as threads."""

    processes: int
    known: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.processes)

    def reduce(self, process: int, tensor: Tensor) -> Tensor:
        """Return the sum of what all processes hand in."""
        self.known[process] = tensor
        self.barrier.wait(TIMEOUT)
        total = torch.stack([self.known[number] for number in range(self.processes)]).sum(0)
        self.barrier.wait(TIMEOUT)
        return total

    def tallies(self, first: int, skipped: set[int], saved: Any, order: Order) -> list[Tally]:
        """Return the tally of each process."""
        found = []
        for process in range(self.processes):
            accelerator = SimpleNamespace(
                process_index=process,
                num_processes=self.processes,
                reduce=lambda tensor, _, process=process: self.reduce(process, tensor),
            )
            job = SimpleNamespace(order=order, hosting=SimpleNamespace(main=process == 0))
            a_run = SimpleNamespace(
                job=job, accelerator=accelerator, device=torch.device("cpu"), first_step=first, skipped_steps=skipped
            )
            found.append(Tally(a_run, saved))  # type: ignore[arg-type]
        return found


def hosted_by(processes: int, order: Order = ORDER) -> Callable[[int], range]:
    return lambda process: hosted(order.virtual_ranks, processes, process)


def received(order: Order, steps: Iterator[int] | range, ranks: range) -> Received:
    return [(step, rank, order.views(step, rank)) for step in steps for rank in ranks]


def trained(
    processes: int,
    first: int,
    last: int,
    *,
    saved: Any = None,
    skipped: set[int] = frozenset(),  # type: ignore[assignment]
    ranks_of: Callable[[int], range] | None = None,
    spoil: Callable[[Received], Received] = lambda views: views,
    order: Order = ORDER,
) -> tuple[Any, int]:
    """Train from a step to another on processes, whose first one's loader is spoilt; return state and proven views.

    Raises what the processes raise, all alike.
    """
    # what a checkpoint holds goes through JSON
    group = Group(processes)
    tallies = group.tallies(first, skipped, json.loads(json.dumps(saved)), order)
    ranks_of = ranks_of or hosted_by(processes, order)
    raised: list[Exception | None] = [None] * processes

    def work(process: int) -> None:
        steps = [step for step in range(first, last) if step not in skipped]
        views = received(order, steps, ranks_of(process))  # type: ignore[arg-type]
        views = views if process else spoil(views)
        ends = [step + 1 for step in range(first, last) if (step + 1) % order.steps_per_epoch == 0]
        try:
            for end in [*ends, *([] if last in ends else [last])]:
                while views and views[0][0] < end:
                    step, rank, seen = views.pop(0)
                    batch = SimpleNamespace(step=step, virtual_rank=rank, samples=seen.samples, copies=seen.copies)
                    tallies[process].note(batch)  # type: ignore[arg-type]
                tallies[process].check(end)
        except TrainingError as error:
            raised[process] = error

    threads = [Thread(target=work, args=(process,)) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len({str(error) for error in raised}) == 1, "all processes say the same"
    if raised[0]:
        raise raised[0]
    return tallies[0].state, tallies[0].proven


@pytest.mark.parametrize("noted", [1, 5, 256])
def test_a_run_on_any_hosting_is_proven_whole(noted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "NOTED", noted)
    monkeypatch.setattr(tally, "STRETCH", noted * 4)
    for processes in (1, 2, 3):
        state, proven = trained(processes, 0, 2 * ORDER.steps_per_epoch + 3)
        assert proven == 12 * (2 * ORDER.steps_per_epoch + 3)
        assert (state["first_step"], state["counts"]) == (2 * ORDER.steps_per_epoch, [12, 12, 12])


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 30), max_size=3, unique=True).map(sorted),
    hosting=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    skipped=st.sets(st.integers(0, 30), max_size=5),
    cycle=st.integers(0, 2),
)
def test_interrupted_runs_on_other_hostings_go_on_adding_up(
    cuts: list[int], hosting: list[int], skipped: set[int], cycle: int
) -> None:
    order = replace(ORDER, cycle=cycle)
    saved, first = None, 0
    for last, processes in zip([*cuts, 31], hosting, strict=False):
        saved, _ = trained(processes, first, last, saved=saved, skipped=skipped, order=order)
        first = last
    whole, _ = trained(1, 0, 31, skipped=skipped, order=order)
    assert saved == whole


def spoilt(name: str) -> Callable[[Received], Received]:
    def lost(views: Received) -> Received:
        return [*views[:4], *views[5:]]

    def repeated(views: Received) -> Received:
        return [*views[:5], *views[4:]]

    def of_another_step(views: Received) -> Received:
        step, rank, _ = views[4]
        return [*views[:4], (step, rank, ORDER.views(step - 1, rank)), *views[5:]]

    def of_another_rank(views: Received) -> Received:
        step, rank, _ = views[4]
        return [*views[:4], (step, rank, ORDER.views(step, 2)), *views[5:]]

    def other_copies(views: Received) -> Received:
        step, rank, seen = views[4]
        return [*views[:4], (step, rank, seen._replace(copies=1 - seen.copies[::-1] * 0)), *views[5:]]

    return {
        "lost": lost,
        "repeated": repeated,
        "of another step": of_another_step,
        "of another rank": of_another_rank,
        "other copies": other_copies,
    }[name]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "views"),
    [("lost", 28), ("repeated", 36), ("of another step", 32), ("of another rank", 32), ("other copies", 32)],
)
def test_a_batch_that_is_not_the_orders_is_found_at_the_end_of_its_epoch(name: str, views: int, processes: int) -> None:
    rank = 1 if processes == 1 else 0  # of the fifth batch of the first process, which hosts 3 or 2 of them
    with pytest.raises(TrainingError) as caught:
        trained(processes, 0, ORDER.steps_per_epoch, spoil=spoilt(name))
    says = (
        f"epoch 0, steps 0 to 7: virtual rank {rank} trained on {views} views; the order has 32 for each, and not the"
    )
    assert str(caught.value).startswith(says)


def test_virtual_ranks_that_two_processes_host_are_named_and_those_that_none_hosts() -> None:
    with pytest.raises(TrainingError, match="virtual rank 0 trained on 64 views, virtual rank 2 trained on 0 views"):
        trained(2, 0, ORDER.steps_per_epoch, ranks_of=[range(2), range(1)].__getitem__)


def test_what_a_resume_loses_or_repeats_is_found() -> None:
    saved, _ = trained(1, 0, 3)
    for first in (2, 4):
        with pytest.raises(TrainingError, match="virtual rank 0 trained on"):
            trained(2, first, 8, saved=saved)


def test_a_checkpoint_of_before_there_were_tallies_begins_to_count_at_its_step() -> None:
    assert trained(1, 5, 8)[1] == 3 * 12


class Spoilt(TrainingBatches):
    """Batches of which one holds the views of the step before it."""

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        step, rank = item
        batch = super().__getitem__((step - 1, rank) if item == (6, 1) else item)
        return batch._replace(step=step)


@pytest.mark.slow
def test_a_repeated_batch_ends_a_run_before_it_is_saved_and_the_same_command_goes_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as spoiling:
        spoiling.setattr("pipeline.train.TrainingBatches", Spoilt)
        with pytest.raises(
            TrainingError, match=r"epoch 1, steps 5 to 7: virtual rank 1 trained on 12 views; the order"
        ):
            train_here(dataset, folder)
    newest = checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[0])
    assert newest.step == 6
    assert newest.state["trained"]["counts"] == [4, 4, 4]
    assert train_here(dataset, folder) == 0
    assert train_here(dataset, tmp_path / "unbroken") == 0
    assert summary(folder)["weights_sha256"] == summary(tmp_path / "unbroken")["weights_sha256"]
    said = capsys.readouterr().out
    assert (
        len(
            re.findall(
                r"^shuffle   [01]\.\d\d of a random draw's mixture of classes, with --data.window 16$", said, re.M
            )
        )
        == 3
    )
    assert "views     all 180 as the order has them, since step 5\n" in said
    assert f"views     all {STEPS * 12} as the order has them\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("change", ["lost", "repeated", "lost at the end"])
def test_a_batch_that_the_loader_loses_or_repeats_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    items = {"lost": 4, "repeated": 3, "lost at the end": 5}

    def sampled(sampler: StepSampler) -> Iterator[tuple[int, int]]:
        all_items = [(step, rank) for step in sampler.steps for rank in sampler.virtual_ranks]
        place = items[change]
        if change == "repeated":
            return iter([*all_items[: place + 1], *all_items[place:]])
        return iter([*all_items[:place], *all_items[place + 1 :]])

    monkeypatch.setattr(StepSampler, "__iter__", sampled)
    rank, instead = {
        "lost": (1, "that of step 1, virtual rank 2"),
        "repeated": (1, "that of step 1, virtual rank 0"),
        "lost at the end": (2, "none"),
    }[change]
    with pytest.raises(LoaderError) as caught:
        train_here(dataset, tmp_path, max_steps=2)
    assert str(caught.value) == (
        f"step 1: the loader lost the batch of virtual rank {rank}, or repeated another: it handed over {instead}. "
        f"Start the same command again to go on."
    )


@pytest.mark.dist
def test_two_processes_that_train_the_same_virtual_ranks_are_stopped(dataset: Dataset, tmp_path: Path) -> None:
    done = run(PROGRAMS / "doubled.py", "--data", dataset.folder, "--output", tmp_path / "run", processes=2, code=1)
    assert (
        "virtual rank 0 trained on 16 views, virtual rank 1 trained on 0 views, virtual rank 2 trained" in done.stderr
    )
    assert not checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
