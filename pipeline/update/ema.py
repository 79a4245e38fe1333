"""The moving average of the weights, of what each process holds of them: it is taken number by number."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.library_internals import copy_all, move_towards


class Ema:
    """The average of tensors that `update` is shown after every step; with a warm-up its decay rises up to `decay`."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float, *, warmup: bool) -> None:
        self._decay, self._warmup = decay, warmup
        self.tensors = {name: value.detach().clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move towards what the tensors are after `step` steps; counters, which have no average, are copied."""
        decay = self._decay
        if self._warmup:
            decay = min(decay, 1 - step ** (-2 / 3))  # timm's ModelEmaV3 with use_warmup
        names = {name: None for name, value in self.tensors.items() if value.is_floating_point()}
        move_towards([self.tensors[name] for name in names], [tensors[name].detach() for name in names], 1 - decay)
        if counters := [name for name in self.tensors if name not in names]:
            copy_all([self.tensors[name] for name in counters], [tensors[name] for name in counters])
