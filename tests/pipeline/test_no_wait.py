"""A step never waits for the device: one step of every recipe on CUDA tensors without memory, which have no numbers.

Whoever asks such a tensor for its numbers (`.item()`, `.tolist()`, `bool(tensor)`, `nonzero`) fails, and so does who
copies between host and device in a way that the host waits for. tests/gpu does the same on a real device.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import recipes
from pipeline import devices, micro_batch
from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, Recipe
from pipeline.data import device as of_device
from pipeline.data.batch import Batch
from pipeline.data.device import model_input, on_device
from pipeline.data.loader import Feed
from pipeline.data.record import Records, view_record
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting
from pipeline.job import Job
from pipeline.micro_batch import MicroBatch
from pipeline.model.batch_norm import BatchNorms
from pipeline.model.build import has_fixed_size, on_meta
from pipeline.model.student import Student, fuse, heads
from pipeline.session.answers import Gathering
from pipeline.session.evaluate import counted
from pipeline.session.events import Events, StopRequest
from pipeline.teacher.outputs import TeacherOutputs
from pipeline.teacher.teacher import on_meta as teacher_on_meta
from pipeline.train import Run, train
from pipeline.update.ema import Ema
from pipeline.update.engine import Replicated
from pipeline.update.schedule import Schedule
from pipeline.update.weights import Weights
from tests.tiny import TINY

NAMES: Final = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
CUDA: Final = torch.device("cuda", 0)
RANKS: Final = 2
IMAGES: Final = 2  # of a virtual rank


class Waited(AssertionError):
    """The host would wait for a copy."""


class NoWaiting(TorchDispatchMode):
    """Refuses copies between host and device that the host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        done = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            crossing, waits = done.device.type != args[0].device.type, not (kwargs or {}).get("non_blocking")
        elif func is torch.ops.aten.copy_.default:
            crossing = args[0].device.type != args[1].device.type
            waits = not (args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking"))
        else:
            return done
        if crossing and waits:
            raise Waited(f"{func} between host and device, of {tuple(done.shape)}")
        return done


class OnCuda:
    """What a run asks of its Accelerator."""

    device = CUDA

    @staticmethod
    @contextmanager
    def autocast() -> Iterator[None]:
        """Compute in bf16; torch's own context looks for a real device."""
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)

    @staticmethod
    def reduce(tensor: Tensor, _: str) -> Tensor:
        return tensor


class Alone(Replicated):
    """One process without a backward pass, which fake tensors have not: gradients of the right shapes instead."""

    def _share(self, student: Student) -> nn.Module:
        forward, student.drop_rates = student.forward, student.drop_rates.to(CUDA)

        def autocast(images: Tensor, keys: Tensor) -> Tensor:
            with OnCuda.autocast():
                return forward(images, keys).float()

        student.forward = autocast  # type: ignore[method-assign]
        return student

    def exchange(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        for parameter in self.net.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)


class Sending(Events):
    """What a step tells the host, with nothing of what comes of it."""

    def __init__(self, run: Run) -> None:
        self.run, self.recipe = run, run.job.recipe
        self.log: Any = SimpleNamespace(main=True)
        self._stop = StopRequest()
        self._saved_at = 0.0
        self._quarantine: Any = SimpleNamespace(has_news=False)
        self._sent: Any = []
        self.stepped = False

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        assert images.device == CUDA

    def lap(self, part: str) -> None:
        pass

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        self._send(step, losses, agreed, norm)
        self.stepped = True
        return True


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Marks in the queue of a device that is not there are left out, and tensors that are kept by device forgotten."""
    monkeypatch.setattr(devices, "mark", lambda *_, **__: None)
    monkeypatch.setattr(micro_batch, "memory_of", lambda _: None)
    of_device._scale.cache_clear()
    yield
    of_device._scale.cache_clear()


class HostRecords(Records):
    """Records with numbers on the host alone; a copy of theirs has none."""

    @property
    def host(self) -> Any:
        numbers = self.__dict__.get("numbers")  # read once, before there are fake tensors
        if numbers is None:
            numbers = self.__dict__["numbers"] = super().host
        return numbers

    def to(self, device: torch.device) -> Records:
        return Records(torch.empty(self.block.shape, dtype=torch.uint8, device=device), self.kind)


def small(recipe: Recipe) -> Recipe:
    """Return a recipe with two images in each of two virtual ranks, its transformers of two blocks, which are alike."""
    model = replace(recipe.model, pretrained=False, mean=recipe.model.mean or IMAGENET_MEAN,
                    std=recipe.model.std or IMAGENET_STD)  # fmt: skip
    if has_fixed_size(model.name):
        model = replace(model, depth=2)
    if recipe.distill.teacher:
        teacher = recipe.distill.teacher.replace("regnety_160.deit_in1k", "regnety_002")
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=teacher))
    # torch's fused SGD knows no fake tensors
    compute = replace(recipe.compute, fused_optimizer=recipe.optim.name != "sgd")
    recipe = replace(recipe, batch=RANKS * IMAGES, virtual_ranks=RANKS, model=model, precision="bf16", compute=compute)
    # all in one pass, but where batch norm is over a virtual rank
    return recipe if BatchNorms(on_meta(recipe)) else replace(recipe, micro_batch=RANKS * IMAGES)


def batch(recipe: Recipe, virtual_rank: int) -> Batch:
    """Return a batch in which views are erased and mixed."""
    records = HostRecords.room(IMAGES, view_record(recipe.model.img_size))
    host = records.host
    host["erased"], host["cut"], host["lam"], host["partner"] = (1, 2, 5, 6), (2, 2, 4, 4), 0.75, [1, 0]
    none = np.arange(IMAGES)
    return Batch(0, virtual_rank, 0, records, none, none, [], replaced=False)


def on_cuda(net: nn.Module) -> nn.Module:
    return net.to_empty(device=CUDA)


def one_step(recipe: Recipe) -> tuple[Run, Sending]:
    """Take a step of a recipe on fake tensors and return the run."""
    nets = on_meta(recipe), teacher_on_meta(recipe) if recipe.distill.teacher else None
    batches = [batch(recipe, rank) for rank in range(RANKS)]  # a host's, with numbers
    hosting = Hosting(precision="bf16")
    batch_norm = bool(BatchNorms(nets[0]))
    job = Job(
        recipe=recipe, data="", dataset=None, folder=RunFolder(Path("none")), hosting=hosting, batch_norm=batch_norm
    )
    accelerator: Any = OnCuda()
    passes = MicroBatch(job, accelerator)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _one_step(job, accelerator, passes, batches, *nets)


def _one_step(
    job: Job, accelerator: Any, passes: MicroBatch, batches: list[Batch], net: nn.Module, taught: Any
) -> tuple[Run, Sending]:
    recipe, hosting = job.recipe, job.hosting
    on_cuda(net)
    engine = Alone(net, recipe, hosting, accelerator)
    averages = {name: Ema(engine.local(), decay, warmup=True) for name, decay in recipe.ema.decays.items()}
    teacher = TeacherOutputs(recipe, lambda: taught.to_empty(device=CUDA), None, accelerator.autocast)
    run = Run(
        job=job,
        accelerator=accelerator,
        schedule=Schedule(recipe, 10),
        weights=Weights(net, engine, averages, net),
        micro_batch=passes,
        feed=Feed(iter(batches)),
        teacher=teacher if taught else None,
        prefix=None,
        class_weights=None,
        norms=BatchNorms(net),
        first_step=0,
        last_step=2,
        skipped_steps=(),
    )
    events = Sending(run)
    with NoWaiting():
        assert train(run, events)
    return run, events


def evaluated(run: Run, recipe: Recipe) -> Tensor:
    """Return what an evaluation adds up of a batch."""
    host = batch(recipe, 0).records
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting(), torch.inference_mode():
        part = host.to(CUDA)
        images = of_device.normalize(part.field("pixels"), recipe.model)
        with run.accelerator.autocast():
            by_head = heads(run.weights.net.eval(), images).float()
        logits = fuse(by_head, recipe.distill.fusion)
        Gathering(10, recipe.data.classes, run.accelerator).note(part.field("label"), part.field("label"), logits)
        return counted(by_head, logits, part.field("label"))


TAKEN: Final[set[Any]] = set()  # what the steps were made of that were taken


def made_of(recipe: Recipe) -> Any:
    """Return what a step is made of: recipes that differ in numbers alone take the same one."""
    layers = frozenset(type(module) for module in on_meta(recipe).modules())
    model, distill = recipe.model, recipe.distill
    return (
        layers, recipe.optim.name, recipe.optim.clip > 0, recipe.mix.loss, recipe.finetune.strategy,
        len(recipe.ema.decays), model.drop_path > 0, model.dropout > 0, model.pretrained,
        distill.teacher, distill.loss, distill.token, distill.top, distill.fusion,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_step_and_no_evaluation_of_a_recipe_waits_for_the_device(name: str) -> None:
    recipe = small(importlib.import_module(f"recipes.{name}").RECIPE)
    if (step := made_of(recipe)) in TAKEN:
        return
    run, events = one_step(recipe)
    assert events.stepped
    assert evaluated(run, recipe).device == CUDA
    TAKEN.add(step)


class Curious(Sending):
    """Looks at the loss of the step."""

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        return bool(losses.sum().item() > 0)


def test_a_wait_for_a_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.pipeline.test_no_wait.Sending", Curious)
    with pytest.raises(DataDependentOutputException):
        one_step(small(TINY))


@pytest.mark.parametrize("copied", [lambda: torch.tensor(1.0, device=CUDA), lambda: torch.zeros(3, device=CUDA).cpu()])
def test_a_wait_for_a_copy_is_noticed(copied: Any) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting(), pytest.raises(Waited):
        copied()


def test_views_are_where_the_batch_was_sent_in_one_copy() -> None:
    sent = batch(TINY, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting():
        images = model_input(on_device(sent, CUDA), TINY.model)
    assert (images.device, images.dtype, tuple(images.shape)) == (CUDA, torch.float32, (IMAGES, 3, 16, 16))
