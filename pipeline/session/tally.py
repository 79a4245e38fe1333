"""Exactly once: the views that a run trains on, against those that its order has.

Of each virtual rank's views two things are kept: how many there are, and the sum, mod 2^64, of a hash of each one's
step, sample and copy. A sum does not depend on who trained on a view, nor when, so processes add theirs up, and a run
that goes on adds to what its checkpoint holds. A view that is lost, repeated or another's changes it.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.batch import Batch
from pipeline.errors import TrainingError
from pipeline.randomness import view_keys
from pipeline.train import Run

NOTED: Final = 256  # batches that are hashed together: one by itself costs ten times as much
STRETCH: Final = 1 << 14  # views of the order that are hashed together
SHOWN: Final = 3  # virtual ranks at fault, in a sentence


class Tally:
    """What a run trained on since a step, at most the first of its epoch; `saved` is what a checkpoint holds of it."""

    def __init__(self, run: Run, saved: Mapping[str, Any] | None = None) -> None:
        self._run = run
        self._order = run.job.order
        self._noted: list[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]] = []  # step, rank, samples, copies
        self.since = run.first_step
        self.proven = 0  # views since then that were found to be the order's
        self._begin(run.first_step)
        if saved:
            self.since = self._first = self._through = saved["first_step"]
            if run.job.hosting.main:
                self._counts[:], self._sums[:] = saved["counts"], np.array(saved["sums"], dtype=np.uint64)

    def _begin(self, step: int) -> None:
        """Count from a step on."""
        self._first = self._through = step  # the order's own are hashed up to `_through`
        self._proven_before = self.proven
        # of each virtual rank: what this process trained on, and the hashes of what the order has, in this one's share
        self._counts, self._sums, self._expected = np.zeros((3, self._order.virtual_ranks), dtype=np.uint64)
        self._saved = {"first_step": step, "counts": self._counts.tolist(), "sums": self._sums.tolist()}

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the views of all processes, as they were at the last `check`."""
        return self._saved

    def note(self, batch: Batch) -> None:
        """Take note of a batch that is trained on."""
        self._noted.append((batch.step, batch.virtual_rank, batch.samples, batch.copies))
        if len(self._noted) == NOTED:
            self._add_noted()

    def check(self, done: int) -> None:
        """Compare all that was trained on in the epoch with its order, up to `done` finished steps.

        All processes must ask. Raises TrainingError, in all of them, with the virtual ranks at fault.
        """
        self._add_noted()
        self._add_expected(done)
        own = np.stack([self._counts, self._sums, self._expected]).view(np.int64)
        known = self._run.accelerator.reduce(torch.from_numpy(own).to(self._run.device), "sum")  # wraps, as intended
        counts, sums, expected = known.cpu().numpy().view(np.uint64)
        steps = done - self._first - sum(self._first <= step < done for step in self._run.skipped_steps)
        views = steps * self._order.rank_batch
        wrong = np.flatnonzero((counts != views) | (sums != expected)).tolist()
        if wrong:
            found = [f"virtual rank {rank} trained on {counts[rank]} views" for rank in wrong[:SHOWN]]
            more = f", and {len(wrong) - SHOWN} more virtual ranks likewise" if len(wrong) > SHOWN else ""
            raise TrainingError(
                f"epoch {self._first // self._order.steps_per_epoch}, steps {self._first} to {done - 1}: "
                f"{', '.join(found)}{more}; the order has {views} for each, and not the same ones. Views were lost, "
                f"repeated or another's. No checkpoint holds them: start the same command again to go on from the "
                f"newest one. If it ends like this again, report it, with what --trace-samples writes."
            )
        self._saved = {"first_step": self._first, "counts": counts.tolist(), "sums": sums.tolist()}
        self.proven = self._proven_before + views * self._order.virtual_ranks
        if done % self._order.steps_per_epoch == 0:
            self._begin(done)

    def _add_noted(self) -> None:
        """Add the batches that this process took note of."""
        if not self._noted:
            return
        steps, ranks, samples, copies = zip(*self._noted, strict=True)
        self._noted.clear()
        views = [len(of_batch) for of_batch in samples]
        hashes = view_hashes(np.repeat(steps, views), np.concatenate(samples), np.concatenate(copies))
        np.add.at(self._counts, list(ranks), np.array(views, dtype=np.uint64))
        np.add.at(self._sums, np.repeat(ranks, views), hashes)

    def _add_expected(self, done: int) -> None:
        """Add what the order has, up to `done` finished steps, for this process's share of the virtual ranks.

        Not for those that it hosts: it may host them by mistake.
        """
        order, accelerator = self._order, self._run.accelerator
        stretch = max(1, STRETCH // order.rank_batch)
        for first in range(self._through, done, stretch):
            steps = np.arange(first, min(first + stretch, done))
            trained = np.repeat(~np.isin(steps, list(self._run.skipped_steps)), order.rank_batch)
            for rank in range(accelerator.process_index, order.virtual_ranks, accelerator.num_processes):
                views = order.views(first, rank, len(steps))
                hashes = view_hashes(np.repeat(steps, order.rank_batch), views.samples, views.copies)
                self._expected[rank : rank + 1] += hashes[trained].sum()
        self._through = done


def view_hashes(steps: NDArray[np.int64], samples: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each view that a virtual rank trains on."""
    return view_keys(0, steps, samples, copies).view(np.uint64)
