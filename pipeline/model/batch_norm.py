"""Batch norm whose statistics are a function of the virtual ranks, not of the processes that host them.

A forward pass normalises by the statistics of its batch, which is a virtual rank's. The running statistics move once
a step, towards the mean over all virtual ranks; torch, left alone, would move them once a forward pass, on each
process by what it hosts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.library_internals import batch_norms
from pipeline.model.finetune import frozen_modules


class BatchNorms:
    """The batch norms of a model that are trained, none in a plain ViT."""

    def __init__(self, net: nn.Module) -> None:
        frozen = set(frozen_modules(net))
        # of those with running statistics, which timm's and torchvision's models all have
        self._norms: list[Any] = [norm for norm in batch_norms(net) if norm not in frozen]
        self._momenta = [0.1 if norm.momentum is None else norm.momentum for norm in self._norms]

    def __bool__(self) -> bool:
        return bool(self._norms)

    @contextmanager
    def over_virtual_ranks(self, accelerator: Accelerator, hosted: int, virtual_ranks: int) -> Iterator[None]:
        """Within, a step's forward passes, of `hosted` of the `virtual_ranks`; afterwards, move the statistics."""
        if not self._norms:
            yield
            return
        steps = [norm.num_batches_tracked + 1 for norm in self._norms]
        before = self._statistics()
        yield
        means = accelerator.reduce(self._statistics() * (hosted / virtual_ranks), "sum")
        first = 0
        for norm, momentum, step in zip(self._norms, self._momenta, steps, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(step)
            for running in (norm.running_mean, norm.running_var):
                own = slice(first, first := first + running.numel())
                running.copy_(torch.lerp(before[own], means[own], momentum))

    def take_turn(self, turn: int) -> None:
        """Make the next forward pass the step's one number `turn`, from 0: the mean over those so far is kept."""
        for norm in self._norms:
            norm.momentum = 1 / (turn + 1)

    def _statistics(self) -> Tensor:
        return torch.cat([part for norm in self._norms for part in (norm.running_mean, norm.running_var)])
