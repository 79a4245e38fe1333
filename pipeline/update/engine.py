"""Engines: how the processes of a run share its weights, gradients and optimizer state.

`Replicated` is one process alone, or DDP; `FullySharded` is torch's FSDP2; `Zero` is DeepSpeed's ZeRO 1, 2 and 3. The
loop, the checkpoint and the evaluation know of none of them: weights go out *whole*, by parameter name, and what a
process holds of them is *local*. The configuration that `accelerate launch` was given names the engine
(`pipeline/hosting.py`); it changes no view and no number, but for the order in which floats are summed.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.config import EngineName, Recipe
from pipeline.hosting import Hosting
from pipeline.library_internals import exchange_over_torch_alone, link_optimizer_state
from pipeline.model.finetune import rate_scales
from pipeline.model.prefix import Cut
from pipeline.model.student import Student
from pipeline.update.optimizer import (
    as_kept,
    as_tensor,
    build_optimizer,
    group_counters,
    restore_group_counters,
    set_rates,
    update,
)

Tensors = Mapping[str, Tensor]


class Replicated:
    """Every process holds everything, and gradients are averaged over them: DDP, or one process alone."""

    passes_alone: ClassVar[bool] = (
        True  # all passes of a step but the last: where one fails, the others wait for nobody
    )

    def __init__(
        self, net: nn.Module, recipe: Recipe, hosting: Hosting, accelerator: Accelerator, cut: Cut | None = None
    ) -> None:
        self.net = net
        self.accelerator = accelerator
        self._recipe, self._cut = recipe, cut
        self.student = self._share(Student(net, recipe.compute, compiled=hosting.compiled, cut=cut))
        # after the sharing, which may have put other parameters into the net
        self.optimizer = build_optimizer(net, recipe, rate_scales(net, recipe.finetune))
        if self.passes_alone and hosting.processes > 2:
            self._order_buckets()

    def _order_buckets(self) -> None:
        """Have DDP put its buckets into the order that it takes after a first exchange.

        Where gradients lie decides in which order three processes and more add them up: a run that goes on would do its
        first step otherwise than one that was not stopped. Two add up alike in any order.
        """
        self.student.eval()  # keeps the statistics of batch norm
        self.exchange_accumulated()
        self.forget()

    def _share(self, student: Student) -> nn.Module:
        with warnings.catch_warnings():
            # accelerate 1.15 hands it to torch by its old name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            shared: nn.Module = self.accelerator.prepare_model(student)
        return shared

    def exchange(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes in the last forward and backward pass of a step only."""
        context: AbstractContextManager[None] = nullcontext() if last else self.accelerator.no_sync(self.student)
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; over the processes they are averaged."""
        loss.backward()

    def exchange_accumulated(self) -> None:
        """Exchange gradients that were accumulated without: in a pass of one blank image that adds nothing to them."""
        size = self._recipe.model.img_size
        shape = self._cut.shape if self._cut else (3, size, size)
        blank = torch.zeros(1, *shape, device=self.accelerator.device)
        keys = torch.zeros(1, dtype=torch.int64, device=self.accelerator.device)
        # a size of its own: it is not compiled for that
        with torch.compiler.set_stance("force_eager"), self.exchange(last=True):
            self.backward(self.student(blank, keys).sum() * 0.0)

    def forget(self) -> None:
        """Forget the gradients of a step that is done again."""
        self.optimizer.zero_grad()

    def update(self, lr: float, clip: float) -> Tensor:
        """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar."""
        return update(self.optimizer, lr=lr, clip=clip)

    def local(self) -> dict[str, Tensor]:
        """Return what this process holds of the net's tensors, by name; they change with the next step."""
        return self.net.state_dict()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return what this process would hold of a tensor of the net."""
        return whole.to(self.accelerator.device)

    def whole(self, name: str, local: Tensor) -> Tensor:
        """Return the tensor of which this process holds `local`; all processes must ask, in the same order."""
        return local

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's state as (slot/name, whole tensor); for all processes at once, as `whole`.

        The name is a parameter's, or a group's for what is counted there. Numbers of Python are `as_tensor`.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.net.named_parameters()}
        for parameter, slots in self.optimizer.state.items():
            for slot, value in slots.items():
                yield (
                    f"{slot}/{names[parameter]}",
                    value.full_tensor() if isinstance(value, DTensor) else as_tensor(value),
                )
        yield from group_counters(self.optimizer)

    def restore_moments(self, moments: Tensors) -> None:
        """Give the optimizer the state that `moments` yielded, on these processes or on others."""
        parameters = dict(self.net.named_parameters())
        on_device = {parameter for group in self.optimizer.param_groups for parameter in group["params"]
                     if group.get("fused") or group.get("capturable")}  # fmt: skip
        for key, value in restore_group_counters(self.optimizer, moments).items():
            slot, _, name = key.partition("/")
            parameter = parameters[name]
            if value.ndim or parameter in on_device:  # else a counter, which the others keep on the host
                value = value.to(self.accelerator.device)
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            self.optimizer.state[parameter][slot] = as_kept(value)


class FullySharded(Replicated):
    """Every process holds its part of each tensor, and of the gradients and moments: FSDP2.

    accelerate's own FSDP trains each process alone, silently, where there is no GPU; this is the call behind it.
    """

    passes_alone = False  # weights are gathered in each

    def _share(self, student: Student) -> nn.Module:
        device = self.accelerator.device.type
        mesh = init_device_mesh(device, (self.accelerator.num_processes,))
        # autocast alone, as accelerate sets it up for evaluation
        self.accelerator.prepare_model(student, evaluation_mode=True)
        for block in getattr(student.net, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(student, mesh=mesh)
        self._divided = {name: value for name, value in self.net.state_dict().items() if isinstance(value, DTensor)}
        return student

    def exchange(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes in the last backward pass of a step only."""
        cast(FSDPModule, self.student).set_requires_gradient_sync(last)
        return nullcontext()

    def update(self, lr: float, clip: float) -> Tensor:
        """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar."""
        norm = super().update(lr, clip)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def local(self) -> dict[str, Tensor]:
        """Return what this process holds of the net's tensors, by name; they change with the next step."""
        tensors = self.net.state_dict()
        return {name: value.to_local() if name in self._divided else value for name, value in tensors.items()}

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return what this process would hold of a tensor of the net."""
        whole, like = whole.to(self.accelerator.device), self._divided.get(name)
        return whole if like is None else distribute_tensor(whole, like.device_mesh, like.placements).to_local()

    def whole(self, name: str, local: Tensor) -> Tensor:
        """Return the tensor of which this process holds `local`; all processes must ask, in the same order."""
        like = self._divided.get(name)
        if like is None:
            return local
        shared = DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return shared.full_tensor()


class Zero(Replicated):
    """DeepSpeed's ZeRO: processes share the optimizer's state (1), the gradients (2), and the weights (3)."""

    passes_alone = False  # gradients go to who keeps them after each, in stages 2 and 3

    def __init__(
        self, net: nn.Module, recipe: Recipe, hosting: Hosting, accelerator: Accelerator, cut: Cut | None = None
    ) -> None:
        assert cut is None, "a cache of a frozen prefix was refused"
        if accelerator.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # at each step, of calls inside DeepSpeed 0.19
        warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
        import deepspeed  # takes seconds, and only this engine needs it

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if accelerator.device.type == "cpu":
            exchange_over_torch_alone()

        self.net = net
        self.accelerator = accelerator
        self._recipe, self._cut = recipe, cut
        student = Student(net, recipe.compute, compiled=hosting.compiled)
        accelerator.prepare_model(student, evaluation_mode=True)  # autocast alone
        optimizer = build_optimizer(net, recipe, rate_scales(net, recipe.finetune))
        settings = dict(hosting.deepspeed)
        self._stage: int = settings["zero_optimization"]["stage"]
        self._parameters = dict(net.named_parameters())  # DeepSpeed keeps them, and takes their memory apart
        settings |= {"gradient_clipping": recipe.optim.clip, "train_micro_batch_size_per_gpu": recipe.rank_batch}
        self.optimizer: Any
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=student, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.student = self._engine

    def exchange(self, last: bool) -> AbstractContextManager[None]:
        """Tell DeepSpeed whether this is the last forward and backward pass of a step."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; over the processes they are averaged."""
        self._engine.backward(loss)

    def update(self, lr: float, clip: float) -> Tensor:
        """Take one optimizer step, forget the gradients, and return their norm before clipping, a scalar."""
        set_rates(self.optimizer, lr)
        self._engine.step()  # clips by itself
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.accelerator.device)
        return norm.masked_fill(norm < 0, torch.nan)  # DeepSpeed's word for a norm that is not finite is -1

    def local(self) -> dict[str, Tensor]:
        """Return what this process holds of the net's tensors, by name; they change with the next step."""
        tensors = self.net.state_dict()
        if self._stage == 3:
            parameters: Any = self._parameters
            tensors |= {name: parameter.ds_tensor.data for name, parameter in parameters.items()}
        return tensors

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return what this process would hold of a tensor of the net."""
        parameter = self._divided(name)
        whole = whole.to(self.accelerator.device)
        if parameter is None:
            return whole
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(whole.flatten(), (0, size * self.accelerator.num_processes - whole.numel()))
        return padded[self.accelerator.process_index * size :][:size].view_as(parameter.ds_tensor).clone()

    def whole(self, name: str, local: Tensor) -> Tensor:
        """Return the tensor of which this process holds `local`; all processes must ask, in the same order."""
        parameter = self._divided(name)
        if parameter is None:
            return local
        parts = [torch.empty_like(local) for _ in range(self.accelerator.num_processes)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat([part.flatten() for part in parts])[: parameter.ds_numel].view(parameter.ds_shape)

    def _divided(self, name: str) -> Any:
        """Return the parameter of a name if the processes share it, else None."""
        return self._parameters.get(name) if self._stage == 3 else None

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's state as (slot/name, whole tensor); for all processes at once, as `whole`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._stage < 3:
            link_optimizer_state(self.optimizer)
        states = list(self.optimizer.optimizer.state.values())
        slots = sorted({slot for state in states for slot in state})
        for name, parameter in self._parameters.items():
            for slot in slots if parameter.requires_grad else ():
                counter = as_tensor(states[0][slot])
                if counter.ndim == 0:  # one of all parameters: every one is trained at every step
                    yield f"{slot}/{name}", counter.clone()
                else:
                    yield f"{slot}/{name}", safe_get_full_optimizer_state(parameter, slot)

    def restore_moments(self, moments: Tensors) -> None:
        """Give the optimizer the state that `moments` yielded, on these processes or on others."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if not moments:
            return
        self._make_state()
        if self._stage < 3:
            link_optimizer_state(self.optimizer)
        for key, value in moments.items():
            slot, _, name = key.partition("/")
            if value.ndim == 0:
                for state in self.optimizer.optimizer.state.values():
                    kept = state[slot]
                    state[slot] = kept.copy_(value) if isinstance(kept, Tensor) else as_kept(value)
            else:
                safe_set_full_optimizer_state(self._parameters[name], value.to(self.accelerator.device), slot)

    def _make_state(self) -> None:
        """Have the optimizer's state made, which comes with its first step: one at rate 0 on a gradient of 0."""
        self.student.eval()  # keeps the statistics of batch norm
        self.exchange_accumulated()
        self.update(0.0, 0.0)


ENGINES: Final[Mapping[EngineName, type[Replicated]]] = {
    "ddp": Replicated,
    "fsdp2": FullySharded,
    "zero1": Zero,
    "zero2": Zero,
    "zero3": Zero,
}
