"""Benchmarks that a user can repeat: ratios of arms that run in turn, in one process, on the same machine.

`loader` prepares batches and trains nobody; `step` computes on one batch and reads nothing; `recipe` is the training
loop as it is, from shards to the log. Each round times every arm once, and a ratio is the median over the rounds.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.data import FastCollateMixup, create_dataset, create_loader, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset

from launch.plan import activations
from pipeline.batch import LOOK_AHEAD, Places, TrainingBatches, load
from pipeline.config import Compute, Recipe
from pipeline.events import Events
from pipeline.finetune import rate_scales
from pipeline.hosting import build_accelerator, resolve_precision
from pipeline.log import Log
from pipeline.models import Student, build_student, on_paper, shape
from pipeline.optimizer import build_optimizer, update
from pipeline.rehearsal import made_up
from pipeline.spike import Watch
from pipeline.train import build, train
from shards.dataset import Dataset
from shards.reader import Reader

ROUNDS: Final = 7
STEPS: Final = 4  # timed in a round
IMAGES_ON_CPU: Final = 16  # of a step, where there is no accelerator
EXTRACTED: Final = 512  # images that timm reads from files
ALL_CORES: Final = frozenset(psutil.Process().cpu_affinity())

Precision = Literal["bf16", "fp32"]
Arm = Callable[[], float]  # a round of it: images/s


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a benchmark measured."""

    what: str
    speeds: dict[str, list[float]]  # images/s by arm and round
    ratios: dict[str, float]  # "arm / other arm": median over the rounds
    notes: dict[str, str]  # by arm
    n: int = ROUNDS
    machine: str = platform.processor() or platform.machine()
    torch: str = torch.__version__


def show(measured: Measured) -> None:
    """Print a measurement as a table."""
    table = Table(title=f"{measured.what}; images/s, {measured.n} rounds in turn")
    for column in ("arm", "median", "lowest", "highest", ""):
        table.add_column(column, justify="left" if column in ("arm", "") else "right")
    for arm, speeds in measured.speeds.items():
        numbers = (statistics.median(speeds), min(speeds), max(speeds))
        table.add_row(arm, *(f"{number:.1f}" for number in numbers), measured.notes.get(arm, ""))
    console = Console()
    console.print(table)
    for names, ratio in measured.ratios.items():
        console.print(f"{names}: {ratio:.3f}")


def in_turn(what: str, arms: Mapping[str, Arm], over: str, notes: dict[str, str] | None = None) -> Measured:
    """Run the arms in turn, once without counting; their ratios are those of every arm over the arm `over`."""
    rounds = [{name: arm() for name, arm in arms.items()} for _ in range(ROUNDS + 1)][1:]
    ratios = {
        f"{name} / {over}": statistics.median(speeds[name] / speeds[over] for speeds in rounds)
        for name in arms
        if name != over
    }
    return Measured(what=what, speeds={name: [r[name] for r in rounds] for name in arms}, ratios=ratios,
                    notes=notes or {})  # fmt: skip


def alone(recipe: Recipe, precision: Precision) -> Recipe:
    """Return a recipe as one virtual rank trains it, of published weights without them."""
    images = recipe.rank_batch if torch.accelerator.is_available() else min(recipe.rank_batch, IMAGES_ON_CPU)
    return replace(
        recipe,
        batch=images,
        virtual_ranks=1,
        epochs=10_000,
        precision=precision,
        model=replace(recipe.model, pretrained=False, checkpoint=""),
        data=replace(recipe.data, subset=0),
        checkpoint=replace(recipe.checkpoint, every_steps=0, every_minutes=0.0),
        eval=replace(recipe.eval, every_epochs=0),
    )


def device() -> torch.device:
    """Return the accelerator, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize() -> None:
    """Wait for the device."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def settled() -> None:
    """Wait until loader workers have prepared all that they may, so that no arm computes beside another's."""
    while any(child.cpu_percent(0.2) > 10 for child in psutil.Process().children()):
        pass


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
    "bf16, compile": (Compute(compile=True), "bf16"),
    "bf16, activation-checkpointing": (Compute(activation_checkpointing=True), "bf16"),
    "bf16, no-channels-last": (Compute(channels_last=False), "bf16"),
    "bf16, no-fused-optimizer": (Compute(fused_optimizer=False), "bf16"),
}


def bench_step(recipe: Recipe) -> Measured:
    """Compute steps of a recipe's model on one batch, with each of the settings of `compute`."""
    arms, notes = {}, {}
    for name, (compute, precision) in SETTINGS.items():
        if compute.activation_checkpointing and not isinstance(on_paper(recipe), VisionTransformer):
            continue
        small = replace(alone(recipe, precision), compute=compute)
        arms[name] = on_one_batch(small, Student(build_student(small), compute))
        image, _ = activations(small, bf16=precision == "bf16")
        notes[name] = f"{image / 1e6:.1f} MB kept for an image's backward pass"
    return in_turn(f"step of {recipe.name}, {alone(recipe, 'fp32').batch} images", arms, "bf16", notes)


def on_one_batch(recipe: Recipe, model: nn.Module) -> Arm:
    """Return the bare loop: model, loss, optimizer, and one batch that is always the same."""
    there = device()
    model.to(there).train()
    size, images = recipe.model.img_size, recipe.batch
    pixels = torch.randn(images, size, size, 3, device=there).permute(0, 3, 1, 2)  # as they are decoded
    keys = torch.arange(images, device=there)
    labels = torch.arange(images, device=there) % recipe.data.classes
    if isinstance(model, Student):
        optimizer = build_optimizer(model.net, recipe, rate_scales(model.net, recipe.finetune))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast(there.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = model(pixels, keys).mean(0) if isinstance(model, Student) else model(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        if isinstance(model, Student):
            update(optimizer, lr=1e-6, clip=recipe.optim.clip)
        else:
            optimizer.step()
            optimizer.zero_grad()

    return lambda: timed(step, images)


# ---- recipe --------------------------------------------------------------------------------------------------------


def bench_recipe(recipe: Recipe, dataset: Dataset | None, loader_cores: int) -> list[Measured]:
    """Train a recipe from shards against a bare loop in bf16, and against the logic of timm's train.py in fp32.

    With `loader_cores`, loader workers have so many cores, and all arms compute on the others.
    """
    measured = []
    for compare in (against_a_bare_loop, against_timm):
        # each in a fresh process: a process has one precision, and threads that stay where they began
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured.append(pool.submit(compare, recipe, dataset, loader_cores).result())
    return measured


def against_a_bare_loop(recipe: Recipe, dataset: Dataset | None, loader_cores: int) -> Measured:
    """Return what a bf16 comparison of the loop with one that does nothing but compute measures."""
    small = alone(recipe, "bf16")
    with ExitStack() as stack:
        ours = training(small, dataset, loader_cores, stack)
        net = timm.create_model(
            small.model.name, num_classes=small.data.classes, drop_path_rate=small.model.drop_path, **shape(small.model)
        )
        arms = {"vitrail, from shards": ours, "bare loop, one batch": on_one_batch(small, net)}
        what = f"{recipe.name}, bf16, {small.batch} images a step{kept(loader_cores)}"
        return in_turn(what, arms, "bare loop, one batch")


def against_timm(recipe: Recipe, dataset: Dataset | None, loader_cores: int) -> Measured:
    """Return what an fp32 comparison with timm's training, on the same images, measures."""
    small = alone(recipe, "fp32")
    with ExitStack() as stack:
        ours = training(small, dataset, loader_cores, stack)
        theirs = timm_training(small, dataset, loader_cores, stack)
        what = f"{recipe.name}, fp32, {small.batch} images a step, 1 loader worker each{kept(loader_cores)}"
        return in_turn(what, {"vitrail": ours, "timm": theirs}, "timm")


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


def training(recipe: Recipe, dataset: Dataset | None, loader_cores: int, stack: ExitStack) -> Arm:
    """Return the training loop with its events, one loader worker beside it, and the log in a folder of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    dataset = dataset or made_up(recipe, folder / "data")
    accelerator = build_accelerator(resolve_precision(recipe.precision))
    pin(loader_cores, loader=True)
    run = build(recipe, dataset.splits["train"], accelerator, workers=1, max_steps=0, snapshot=None, answers=None)
    stack.callback(run.close)
    pin(loader_cores, loader=False)
    options: dict[str, Any] = {"main": True, "process": 0, "trace": False, "quiet": True}
    log = stack.enter_context(Log(folder, step=0, last_step=run.last_step, **options))
    events = Rounds(run, log, None, {}, seconds=0.0, watch=Watch(recipe.spike), left_out=())

    def a_round() -> float:
        train(run, events)
        synchronize()
        seconds = time.perf_counter() - events.began
        run.first_step += LOOK_AHEAD + STEPS
        settled()
        return recipe.batch * STEPS / seconds

    return a_round


def timm_training(recipe: Recipe, dataset: Dataset | None, loader_cores: int, stack: ExitStack) -> Arm:
    """Return the step of timm 1.0's train.py with its own loader, on files of the same images.

    On one process it has no repeated augmentation, so that it decodes an image for every view.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    dataset = dataset or made_up(recipe, folder / "data")
    extract(dataset, folder / "images")
    model, mix, augment, there = recipe.model, recipe.mix, recipe.augment, device()
    net = timm.create_model(
        model.name, num_classes=recipe.data.classes, drop_path_rate=model.drop_path, **shape(model)
    ).to(there)
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
        ratio=augment.ratio, hflip=augment.flip, auto_augment=policy(recipe), interpolation="bicubic", mean=model.mean,
        std=model.std, num_workers=1, collate_fn=mixed, device=there,
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


def policy(recipe: Recipe) -> str | None:
    """Return timm's word for a recipe's RandAugment."""
    augment = recipe.augment
    if not augment.rand_ops:
        return None
    return f"rand-n{augment.rand_ops}-m{augment.rand_magnitude:g}-mstd{augment.rand_std:g}-inc1"


def extract(dataset: Dataset, folder: Path) -> None:
    """Write the first training images to files, in folders by class."""
    index = dataset.splits["train"]
    reader = Reader(index)
    for number in range(min(EXTRACTED, len(index))):
        content = reader.read(number)
        kind = "png" if content.startswith(b"\x89PNG") else "jpg"
        path = folder / f"{int(index.rows['label'][number]):04d}" / f"{number:06d}.{kind}"
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


# ---- loader --------------------------------------------------------------------------------------------------------


def bench_loader(recipe: Recipe, dataset: Dataset | None) -> Measured:
    """Prepare a recipe's batches against webdataset with timm's transforms, on the same tars, one worker each."""
    small = alone(recipe, "fp32")
    with tempfile.TemporaryDirectory() as scratch:
        dataset = dataset or made_up(small, Path(scratch) / "data")

        def a_round(make: Callable[[Recipe, Dataset], Iterator[Any]]) -> float:
            return timed(make(small, dataset).__next__, small.batch)

        arms = {"vitrail": lambda: a_round(our_batches), "webdataset and timm": lambda: a_round(their_batches)}
        return in_turn(f"loader of {recipe.name}, 1 worker", arms, "webdataset and timm")


def our_batches(recipe: Recipe, dataset: Dataset) -> Iterator[Any]:
    """Start our loader."""
    batches = TrainingBatches(recipe, dataset.splits["train"])
    return iter(load(batches, Places(range(10_000), range(1)), workers=1, pin_memory=False))


def their_batches(recipe: Recipe, dataset: Dataset) -> Iterator[Any]:
    """Start a loader of webdataset with timm's transforms."""
    model, augment = recipe.model, recipe.augment
    transform = create_transform(
        model.img_size, is_training=True, auto_augment=policy(recipe), interpolation="bicubic", scale=augment.scale,
        ratio=augment.ratio, hflip=augment.flip, color_jitter=0.4,
    )  # fmt: skip
    index = dataset.splits["train"]
    tars = [str(index.folder / shard.name) for shard in index.shards]
    stream: Any = WebDataset(tars, shardshuffle=False)
    samples = stream.repeat().shuffle(200).decode("pil")
    samples = samples.to_tuple("jpg;jpeg;png", "cls").map_tuple(transform, int)
    return iter(DataLoader(samples, batch_size=recipe.batch, num_workers=1))
