"""The dry run: a few true optimizer steps of the real model on this machine, and what the full run would be.

What is made smaller is the batch, where the machine has no accelerator, and the evaluation; model, augmentation,
optimizer, checkpoint and resume are the run's own. Published weights are not fetched: random ones take their place.
Nothing is kept but what was measured, in `rehearsal.json` of the run's folder, for `vitrail plan`.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, wait_for_everyone
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from pipeline import devices
from pipeline.config import Log, Recipe, cost_fields
from pipeline.data.batch import TrainingBatches
from pipeline.data.loader import LOOK_AHEAD, StepSampler, load
from pipeline.folder import Rehearsal, RunFolder, SessionLine
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import Job
from pipeline.model.build import on_meta
from pipeline.session.session import DONE, run_job, trained_parts
from pipeline.teacher.teacher import lacks_weights, write_random_weights
from shards.dataset import Dataset, read_dataset
from shards.errors import DamagedFile, harmless
from shards.files import read_json, read_json_lines, write_json
from shards.synthetic import make_dataset
from shards.terminal import plain

STEPS: Final = 4  # the first warms up and is not timed; before the last the run is stopped and resumed
IMAGES_ON_CPU: Final = 4  # of a virtual rank in a step, where there is no accelerator
EVALUATED: Final = 16  # images
TIMED: Final = 4  # batches of a loader, at least
PARTS: Final = {  # of timm's transformers, in words
    "patch_embed": "patch embedding (patch_embed)",
    "pos_embed": "position embeddings (pos_embed)",
    "cls_token": "class token (cls_token)",
    "dist_token": "distillation token (dist_token)",
    "norm": "final norm (norm)",
    "head_dist": "distillation head (head_dist)",
}


def rehearse(job: Job) -> int:
    """Rehearse a job and print what was measured; the data set is made up where there is none."""
    main = job.hosting.main
    recipe = smaller(job.recipe, job.hosting.processes)
    build_accelerator(job.hosting, recipe.compute)
    # of several nodes all must see it: it lies where the run's folder will
    where = job.folder.existing if job.hosting.local_processes < job.hosting.processes else None
    with tempfile.TemporaryDirectory(prefix=".vitrail-rehearsal-", dir=where) as own:
        shared = [own]
        broadcast_object_list(shared)  # one folder for all processes; they end their part before it goes
        scratch = Path(shared[0])
        folder = RunFolder(scratch / "run")
        if main and not job.dataset:
            made_up(recipe, scratch / "data")
        if main and lacks_weights(recipe.distill):
            write_random_weights(recipe, scratch / "teacher.safetensors")
        wait_for_everyone()
        dataset = job.dataset or read_dataset(scratch / "data")
        dataset = replace(dataset, splits={name: index.head(EVALUATED) if name != "train" else index
                                           for name, index in dataset.splits.items()})  # fmt: skip
        if lacks_weights(recipe.distill):
            recipe = replace(recipe, distill=replace(recipe.distill, weights=str(scratch / "teacher.safetensors")))
        data = job.data or "made-up images"
        small = replace(job, recipe=recipe, data=data, dataset=dataset, folder=folder, cut=None)
        if main:
            says = f"{recipe.name}: rehearsing {STEPS} steps of {recipe.batch} images on {small.data} ..."
            print(harmless(says), flush=True)
        for last_step in (STEPS - 1, STEPS):
            run_job(replace(small, max_steps=last_step, resume="auto"), quiet=True)
        prepared = loader_speed(small)
        if main:
            speed = report(job, small, prepared)
            job.folder.path.mkdir(parents=True, exist_ok=True)
            kept = {
                "images_per_second": speed / job.hosting.processes,
                "views_per_core": prepared / (job.hosting.processes * loading_cores(job.hosting)),
                "device": device_name(job.hosting),
                "cost_fields": cost_fields(job.recipe),
            }
            write_json(job.folder.rehearsal, kept)
        wait_for_everyone()
    return DONE


def made_up(recipe: Recipe, folder: Path) -> Dataset:
    """Make a data set of noise that a recipe can take steps on."""
    samples = {"train": max(recipe.batch * 2, 64), "val": EVALUATED}
    size = round(recipe.model.img_size / recipe.eval.crop_ratio)
    return make_dataset(folder, classes=recipe.data.classes, size=size, samples=samples)


class MeasuredSpeed(NamedTuple):
    """Images/s of one process, and views/s of one core; 0 where nobody measured them."""

    images_per_second: float = 0.0
    where: str = ""  # in words
    views_per_core: float = 0.0
    device: str = ""


def measured_speed(job: Job) -> MeasuredSpeed:
    """Return what a rehearsal of this job measured, and where."""
    try:
        kept = read_json(job.folder.rehearsal, Rehearsal)
    except (FileNotFoundError, DamagedFile):
        return MeasuredSpeed()
    if kept["cost_fields"] != cost_fields(job.recipe):
        return MeasuredSpeed()
    device = kept["device"]
    return MeasuredSpeed(
        kept["images_per_second"], f", as rehearsed on {device}", kept.get("views_per_core", 0.0), device
    )


def device_name(hosting: Hosting) -> str:
    """Return what a process computes on."""
    device = devices.current()
    return f"{hosting.cores} CPU cores" if device.type == "cpu" else devices.device_name(device)


def smaller(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe with a batch that this machine steps through in seconds, logged at every step.

    An epoch may be one step: it has as many epochs as there are steps to rehearse.
    """
    ranks, part = recipe.virtual_ranks, recipe.rank_batch
    if not torch.accelerator.is_available():
        ranks, part = min(ranks, 2 * processes), min(part, IMAGES_ON_CPU)
    return replace(
        recipe,
        batch=ranks * part,
        virtual_ranks=ranks,
        epochs=max(recipe.epochs, STEPS),
        model=replace(recipe.model, pretrained=False),
        data=replace(recipe.data, subset=0, balance=False),
        mix=replace(recipe.mix, class_weights=()),
        distill=replace(recipe.distill, store=""),
        finetune=replace(recipe.finetune, cache=""),
        eval=replace(recipe.eval, every_epochs=0, every_steps=0, patience=0, batch=EVALUATED),
        checkpoint=replace(recipe.checkpoint, best="none"),
        log=Log(every_steps=1),
    )


def loader_speed(small: Job) -> float:
    """Return the images/s that the loaders of all processes prepare, measured at once and with nothing beside them.

    What their workers prepare before the first batch is taken is not timed, and as many batches are left at the end.
    """
    ahead = LOOK_AHEAD * small.hosting.workers + 1
    batches = ahead + max(ahead, TIMED)
    steps = range(-(-batches // len(small.virtual_ranks)))
    sampler = StepSampler(steps, small.virtual_ranks)
    loader = load(
        TrainingBatches(small.recipe, small.index),
        sampler,
        workers=small.hosting.workers,
        pin_memory=devices.pins(devices.current()),
        remote=small.index.cache is not None,
    )
    taken = iter(loader)
    wait_for_everyone()
    for _ in range(ahead):
        next(taken)
    started = time.perf_counter()
    for _ in range(ahead, batches):
        next(taken)
    seconds = max(time.perf_counter() - started, 1e-9)
    wait_for_everyone()  # one that is done must not leave the others more of the machine
    return (batches - ahead) * small.recipe.rank_batch / seconds * small.hosting.processes


def loading_cores(hosting: Hosting) -> int:
    """Return the cores that a process's loader keeps busy, with nothing beside it."""
    return min(max(1, hosting.workers), hosting.cores)


def slower(loader: float, model: float) -> str:
    """Return which of loader and model is the slower, by the images/s of each alone, and what that asks for."""
    said = f"loader {loader:.1f} images/s alone, model {model:.1f}"
    if loader < model:
        return f"the loader: {said}. More --data.workers or cores, or smaller images, make the run faster"
    return f"the model: {said}"


def trained_by_part(job: Job) -> Table:
    """Return a table of what trains, by part of the model."""
    table = Table(title="What trains")
    for column in ("part", "trained", "of", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, (some, total) in job.parameters.items():
        share = total / job.parameter_count
        table.add_row(*map(plain, (PARTS.get(part, part), f"{some:,}", f"{total:,}", f"{share:.1%}")))
    table.add_row(*map(plain, ("all", f"{job.trained_parameters:,}", f"{job.parameter_count:,}", "")))
    return table


def report(job: Job, small: Job, prepared: float) -> float:
    """Print what was measured, and the full run that follows from it; return the images/s of all processes.

    `prepared`: the images/s of the loaders alone.
    """
    recipe, hosting, order = job.recipe, job.hosting, job.order
    timed = small.folder.logged("train")[1 : STEPS - 1]
    speed = sum(line["images_per_second"] for line in timed) / len(timed)
    wait = sum(line["data_wait"] for line in timed) / len(timed)
    steps = job.schedule.total_steps
    passed = read_json_lines(small.folder.sessions, SessionLine).good[-1]["micro_batch"]
    saved = sum(file.stat().st_size for file in (small.folder.checkpoints / f"step-{STEPS:08d}").iterdir())
    hours = steps * recipe.batch / speed / 3600
    flops = forward_flops(recipe)
    table = Table(title=plain(f"Rehearsal of {recipe.name}"), show_header=False)
    for row in (
        ("model", f"{recipe.model.name}, {job.parameter_count:,} parameters"),
        ("starts from", job.start or "weights drawn from the seed"),
        ("trained", trained_parts(job)),
        ("teacher", recipe.distill.teacher or "none"),
        *([("cache", f"{job.rows.said(order.num_samples)}; the speed is without it")] if job.rows else []),
        ("forward pass of one image", f"{flops / 1e9:.2f} GFLOPs ({flops / 2e9:.2f} G multiply-adds)"),
        (
            "rehearsed",
            f"{STEPS} steps of {small.recipe.batch} images; stopped after {STEPS - 1}, restored, evaluated",
        ),
        ("speed", f"{speed:.1f} images/s in {hosting.precision}, over {len(timed)} steps"),
        ("data wait", f"{wait:.1%} of the step"),
        ("slower", slower(prepared, speed / max(1 - wait, 1e-9))),
        (
            "peak memory",
            f"{devices.peak_memory(devices.current()) / 2**30:.2f} GiB a process, at {passed} images a micro-batch",
        ),
        ("checkpoint", f"{saved / 1e6:,.0f} MB"),
        (
            "full run",
            f"{steps:,} steps: {recipe.epochs} epochs of {order.steps_per_epoch:,} steps, {job.images:,} images",
        ),
        ("batch", f"{recipe.batch} = {recipe.virtual_ranks} virtual ranks of {recipe.rank_batch}"),
        ("peak learning rate", f"{recipe.peak_lr:.3g}"),
        (
            "hosted here",
            f"{hosting.processes} process(es) with {hosting.shares(recipe.virtual_ranks)} virtual ranks",
        ),
        ("time here", f"{hours:,.1f} hours at this speed, evaluation not counted"),
    ):
        table.add_row(*map(plain, row))
    Console().print(trained_by_part(job))
    Console().print(table)
    return speed


def forward_flops(recipe: Recipe) -> int:
    """Return the floating point operations of one image's forward pass."""
    net = on_meta(recipe)
    image = torch.empty(1, 3, recipe.model.img_size, recipe.model.img_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        net.eval()(image)
    return int(counter.get_total_flops())
