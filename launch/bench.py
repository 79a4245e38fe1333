"""`vitrail bench`: ratios of arms that run in turn, in one process, on the same machine.

`loader` prepares batches and trains nobody (`launch/bench_loader.py`); `step` computes on one batch and reads nothing;
`recipe` is the training loop as it is, from shards to the log.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final

import psutil
import torch
import torch.nn.functional as F
import tyro
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from launch.bench_loader import BenchLoader
from launch.loaders import rand_augment_of_timm
from launch.measured import ALL_CORES, Bench, Measured, alone, in_turn, settled
from pipeline import devices
from pipeline.checkpoint import Writer
from pipeline.config import Compute, Precision, Recipe
from pipeline.data.loader import LOOK_AHEAD
from pipeline.folder import RunFolder
from pipeline.hosting import build_accelerator
from pipeline.job import Job
from pipeline.memory import activations
from pipeline.micro_batch import MicroBatch
from pipeline.model.build import build_model, build_student, on_meta
from pipeline.model.finetune import rate_scales
from pipeline.model.student import Student, compile_blocks
from pipeline.session.best import Best
from pipeline.session.events import Events
from pipeline.session.log import Log
from pipeline.session.rehearsal import made_up
from pipeline.session.spike import Watch
from pipeline.train import build, train
from pipeline.update.optimizer import build_optimizer, update
from shards.dataset import Dataset
from shards.errors import BadRequest
from shards.reader import Reader

STEPS: Final = 4  # timed in a round
EXTRACTED: Final = 512  # images that timm reads from files

Arm = Callable[[], float]  # a round of it: images/s


@dataclass(frozen=True, kw_only=True)
class BenchStep(Bench):
    """Images/s of steps on one batch, with each setting of --compute and in both precisions.

    Example: vitrail bench step deit_tiny
    """

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds and their ratios."""
        return self.tell(bench_step(self.job(arguments).recipe))


@dataclass(frozen=True, kw_only=True)
class BenchRecipe(Bench):
    """Images/s of the training loop from shards: against a bare loop (bf16), and against timm's training (fp32).

    Example: vitrail bench recipe deit_tiny --data DIR
    """

    loader_cores: int = 0  # cores that loader workers have for themselves, as beside a GPU; 0: all share all

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds and their ratios."""
        if not 0 <= self.loader_cores < len(ALL_CORES):
            says = f"--loader-cores {self.loader_cores}: of {len(ALL_CORES)} cores, one at least computes."
            raise BadRequest.of("loader_cores", says)
        if self.loader_cores and sys.platform != "linux":
            raise BadRequest.of("loader_cores", "--loader-cores: this system binds no process to cores; leave it out.")
        return self.tell(*bench_recipe(self.job(arguments), self.loader_cores))


VERB: Final[Any] = (
    Annotated[BenchLoader, tyro.conf.subcommand("loader")]
    | Annotated[BenchStep, tyro.conf.subcommand("step")]
    | Annotated[BenchRecipe, tyro.conf.subcommand("recipe")]
)


def synchronize() -> None:
    """Wait for the device."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(step: Callable[[], Any], images: int, before: int = 1) -> float:
    """Return the images/s of some steps, after some that are not timed."""
    for _ in range(before):
        step()
    synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronize()
    return images * STEPS / (time.perf_counter() - started)


# ---- step ----------------------------------------------------------------------------------------------------------

SETTINGS: Final[Mapping[str, tuple[Compute, Precision]]] = {
    "fp32": (Compute(), "fp32"),
    "bf16": (Compute(), "bf16"),
    "bf16, compile": (Compute(compile="on"), "bf16"),
    "bf16, activation-checkpointing": (Compute(activation_checkpointing=True), "bf16"),
    "bf16, no-channels-last": (Compute(channels_last=False), "bf16"),
    "bf16, no-fused-optimizer": (Compute(fused_optimizer=False), "bf16"),
    "bf16, no-deterministic": (Compute(deterministic=False), "bf16"),
}
BARE: Final = "bare loop, bf16, compiled as a whole"


def bench_step(recipe: Recipe) -> Measured:
    """Compute steps of a recipe's model on one batch, with each of the settings of `compute`."""
    arms, notes = {}, {}
    for name, (compute, precision) in SETTINGS.items():
        if compute.activation_checkpointing and not isinstance(on_meta(recipe), VisionTransformer):
            continue
        small = replace(alone(recipe, precision), compute=compute)
        arms[name] = on_one_batch(small, Student(build_student(small), compute, compiled=compute.compile == "on"))
        image, _ = activations(small, precision)
        notes[name] = f"{image / 1e6:.1f} MB kept for an image's backward pass"
    bare = build_model(recipe.model.from_scratch, recipe.data.classes, recipe.seed)
    bare.compile()
    arms[BARE] = on_one_batch(alone(recipe, "bf16"), bare)
    return in_turn(f"step of {recipe.name}, {alone(recipe, 'fp32').batch} images", arms, "bf16", notes)


def on_one_batch(recipe: Recipe, model: nn.Module) -> Arm:
    """Return the bare loop: model, loss, optimizer, and one batch that is always the same."""
    where = devices.current()
    model.to(where).train()
    size, images = recipe.model.img_size, recipe.batch
    pixels = torch.randn(images, size, size, 3, device=where).permute(0, 3, 1, 2)  # as they are decoded
    keys = torch.arange(images, device=where)
    labels = torch.arange(images, device=where) % recipe.data.classes
    if isinstance(model, Student):
        optimizer = build_optimizer(model.net, recipe, rate_scales(model.net, recipe.finetune))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = model(pixels, keys).mean(0) if isinstance(model, Student) else model(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        if isinstance(model, Student):
            update(optimizer, lr=1e-6, clip=recipe.optim.clip)
        else:
            optimizer.step()
            optimizer.zero_grad()

    return lambda: timed(step, images)


# ---- recipe --------------------------------------------------------------------------------------------------------


def bench_recipe(job: Job, loader_cores: int) -> list[Measured]:
    """Train a recipe from shards against a bare loop in bf16, and against the logic of timm's train.py in fp32.

    With `loader_cores`, loader workers have so many cores, and all arms compute on the others.
    """
    measured = []
    for compare in (against_a_bare_loop, against_timm):
        # each in a fresh process: a process has one precision, and threads that stay where they began
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured.append(pool.submit(compare, job, loader_cores).result())
    return measured


def against_a_bare_loop(job: Job, loader_cores: int) -> Measured:
    """Return what a bf16 comparison of the loop with one that does nothing but compute measures."""
    job = in_precision(job, "bf16")
    recipe = job.recipe
    with ExitStack() as stack:
        ours = training(job, loader_cores, stack)
        net = build_model(recipe.model.from_scratch, recipe.data.classes, recipe.seed)
        if job.hosting.compiled:
            compile_blocks(net)
        arms = {"vitrail, from shards": ours, "bare loop, one batch": on_one_batch(recipe, net)}
        what = f"{recipe.name}, bf16, {recipe.batch} images a step{kept(loader_cores)}"
        return in_turn(what, arms, "bare loop, one batch")


def against_timm(job: Job, loader_cores: int) -> Measured:
    """Return what an fp32 comparison with timm's training, on the same images, measures."""
    job = in_precision(job, "fp32")
    recipe = job.recipe
    with ExitStack() as stack:
        ours = training(job, loader_cores, stack)
        theirs = timm_training(recipe, job.dataset, job.hosting.workers, loader_cores, stack)
        workers = f"{job.hosting.workers} loader worker(s) each"
        what = f"{recipe.name}, fp32, {recipe.batch} images a step, {workers}{kept(loader_cores)}"
        return in_turn(what, {"vitrail": ours, "timm": theirs}, "timm")


def in_precision(job: Job, precision: Precision) -> Job:
    """Return a job in a precision, alone on its virtual rank.

    On a CPU, whose cores the model needs, it has one loader worker; beside an accelerator, those of the request.
    """
    workers = max(1, job.hosting.workers) if torch.accelerator.is_available() else 1
    hosting = replace(job.hosting, precision=precision, workers=workers)
    return replace(job, recipe=alone(job.recipe, precision), hosting=hosting)


def kept(cores: int) -> str:
    """Return what to say of cores that are kept for loader workers."""
    return f", {cores} core(s) for loader workers alone" if cores else ""


class Rounds(Events):
    """The events of a run that pauses after every round, and times its last steps."""

    began = 0.0

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        """Do what a run does after a step; return True at the end of a round."""
        stopping = super().after_step(step, losses, agreed, norm)
        done = step + 1 - self.run.first_step
        if done == LOOK_AHEAD:  # those that were prepared while another arm ran, and the session's pictures
            synchronize()
            self.began = time.perf_counter()
        return stopping or done == LOOK_AHEAD + STEPS


def training(job: Job, loader_cores: int, stack: ExitStack) -> Arm:
    """Return the training loop with its events, loader workers beside it, and the log in a folder of its own."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = RunFolder(scratch)
    job = replace(job, folder=folder, dataset=job.dataset or made_up(job.recipe, scratch / "data"))
    recipe = job.recipe
    accelerator = build_accelerator(job.hosting, recipe.compute)
    pin(loader_cores, loader=True)
    run = build(job, accelerator, MicroBatch(job, accelerator))
    stack.callback(run.feed.close)
    pin(loader_cores, loader=False)
    log = stack.enter_context(Log(folder, step=0, last_step=run.last_step, process=0, trace=False, quiet=True))
    events = Rounds(run, log, None, Writer(), {}, watch=Watch(recipe.spike), best=Best("none", 0))

    def a_round() -> float:
        train(run, events)
        synchronize()
        seconds = time.perf_counter() - events.began
        run.first_step += LOOK_AHEAD + STEPS
        settled()
        return recipe.batch * STEPS / seconds

    return a_round


def timm_training(recipe: Recipe, dataset: Dataset | None, workers: int, loader_cores: int, stack: ExitStack) -> Arm:
    """Return the step of timm 1.0's train.py with its own loader, on files of the same images.

    On one process it has no repeated augmentation, so that it decodes an image for every view.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    dataset = dataset or made_up(recipe, folder / "data")
    extract(dataset, folder / "images")
    model, mix, augment, where = recipe.model, recipe.mix, recipe.augment, devices.current()
    assert model.mean, "a job's recipe has it"
    assert model.std, "and this"
    net = build_model(model.from_scratch, recipe.data.classes, recipe.seed).to(where)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=1e-6, weight_decay=recipe.optim.weight_decay)
    average = ModelEmaV3(net, decay=recipe.ema.decay) if recipe.ema.decay else None
    mixed = FastCollateMixup(
        mixup_alpha=mix.mixup_alpha, cutmix_alpha=mix.cutmix_alpha, prob=mix.prob, switch_prob=mix.switch_prob,
        label_smoothing=mix.smoothing, num_classes=recipe.data.classes,
    )  # fmt: skip
    pin(loader_cores, loader=True)
    loader = create_loader(
        create_dataset("", root=str(folder / "images"), is_training=True), (3, model.img_size, model.img_size),
        recipe.batch, is_training=True, re_prob=augment.erase, re_mode="pixel", scale=augment.scale,
        ratio=augment.ratio, hflip=augment.flip, auto_augment=rand_augment_of_timm(recipe), interpolation="bicubic",
        mean=model.mean, std=model.std, num_workers=workers, collate_fn=mixed, device=where,
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()
    next(batches)  # starts the worker
    stack.callback(batches.close)  # type: ignore[attr-defined]
    pin(loader_cores, loader=False)
    criterion = SoftTargetCrossEntropy()
    net.train()
    number = 0

    def step() -> None:
        nonlocal number
        images, targets = next(batches)
        loss = criterion(net(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update(net, step=number)
        number += 1

    def a_round() -> float:
        speed = timed(step, recipe.batch, before=LOOK_AHEAD)
        settled()
        return speed

    return a_round


def extract(dataset: Dataset, folder: Path) -> None:
    """Write the first training images to files, in folders by class."""
    index = dataset.splits["train"]
    with closing(Reader(index)) as reader:
        for number in range(min(EXTRACTED, len(index))):
            content = reader.read(number)
            kind = "png" if content.startswith(b"\x89PNG") else "jpg"
            path = folder / f"{int(index.row(number)['label']):04d}" / f"{number:06d}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def pin(loader_cores: int, *, loader: bool) -> None:
    """Keep this process to the cores of the loader workers that it starts next, or to the others."""
    if not loader_cores:
        return
    cores = sorted(ALL_CORES)
    mine = cores[:loader_cores] if loader else cores[loader_cores:]
    for thread in psutil.Process().threads():
        os.sched_setaffinity(thread.id, mine)
    torch.set_num_threads(len(mine))
