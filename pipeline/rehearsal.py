"""The dry run: a few true optimizer steps of the real model on this machine, and what the full run would be.

What is made smaller is the batch, where the machine has no accelerator, and the evaluation; model, augmentation,
optimizer, checkpoint and resume are the run's own. Published weights are not fetched: random ones take their place.
Nothing is kept but what was measured, in `rehearsal.json` of the run's folder, for `vitrail plan`.
"""

import json
import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from pipeline.batch import order_on
from pipeline.config import A_RUN, Distill, Recipe, flatten
from pipeline.hosting import cores_per_process, hosted, processes_of_launch, resolve_precision
from pipeline.models import on_paper, parameter_count
from pipeline.request import Request
from pipeline.session import DONE, run_recipe
from pipeline.teacher import write_random_weights
from shards.dataset import Dataset
from shards.files import write_json
from shards.synthetic import make_dataset

STEPS: Final = 4  # the first warms up and is not timed; before the last the run is stopped and resumed
IMAGES_ON_CPU: Final = 4  # of a virtual rank in a step, where there is no accelerator
EVALUATED: Final = 16  # images
KEPT: Final = "rehearsal.json"


def rehearse(request: Request, dataset: Dataset | None) -> int:
    """Rehearse a request and print what was measured; the data set is made up where none is given."""
    processes, process = processes_of_launch()
    recipe = smaller(request.recipe, processes)
    with tempfile.TemporaryDirectory(prefix="vitrail-rehearsal-") as shared:
        scratch = Path(shared)
        images = len(dataset.splits["train"]) if dataset else request.recipe.data.images
        data = request.data if dataset else "made-up images"
        dataset = dataset or made_up(recipe, scratch / "data")
        dataset = replace(dataset, splits={name: index.head(EVALUATED) if name != "train" else index
                                           for name, index in dataset.splits.items()})  # fmt: skip
        if lacks_weights(recipe.distill):
            write_random_weights(recipe, scratch / "teacher.safetensors")
            stand_in = replace(recipe.distill, checkpoint=str(scratch / "teacher.safetensors"))
            recipe = replace(recipe, distill=stand_in)
        output = scratch / "run"
        output.mkdir()
        if process == 0:
            print(f"{recipe.name}: rehearsing {STEPS} steps of {recipe.batch} images on {data} ...", flush=True)
        for last_step in (STEPS - 1, STEPS):
            part = replace(request, recipe=recipe, data=data, output=str(output), max_steps=last_step, resume="auto")
            run_recipe(part, dataset, quiet=True)
        if process == 0:
            speed = report(request.recipe, recipe, images, output)
            request.folder.mkdir(parents=True, exist_ok=True)
            kept = {
                "images_per_second": speed / processes,
                "device": device_name(),
                "computed": computed(request.recipe),
            }
            write_json(request.folder / KEPT, kept)
    return DONE


def made_up(recipe: Recipe, folder: Path) -> Dataset:
    """Make a data set of noise that a recipe can take steps on."""
    samples = {"train": max(recipe.batch * 2, 64), "val": EVALUATED}
    size = round(recipe.model.img_size / recipe.eval.crop_ratio)
    return make_dataset(folder, classes=recipe.data.classes, size=size, samples=samples)


def lacks_weights(distill: Distill) -> bool:
    """Return whether a teacher's weights would have to be fetched."""
    return bool(distill.teacher) and not distill.checkpoint and not distill.teacher.startswith(A_RUN)


def measured_speed(request: Request) -> tuple[float, str]:
    """Return the images/s of one process that a rehearsal of this request measured, and where; 0 where none did."""
    path = request.folder / KEPT
    if not path.exists():
        return 0.0, ""
    kept = json.loads(path.read_text())
    if kept["computed"] != computed(request.recipe):
        return 0.0, ""
    return kept["images_per_second"], f", as rehearsed on {kept['device']}"


def computed(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that the speed of a rehearsal depends on, and what they were."""
    groups = ("model.", "distill.", "finetune.", "compute.", "precision", "micro_batch")
    of_weights = ("model.pretrained", "model.checkpoint", "model.new_head", "distill.checkpoint")
    return {
        name: value for name, value in flatten(recipe).items() if name.startswith(groups) and name not in of_weights
    }


def device_name() -> str:
    """Return what a process computes on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores_per_process()} CPU cores"


def smaller(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe with a batch that this machine steps through in seconds, logged at every step."""
    ranks, part = recipe.virtual_ranks, recipe.rank_batch
    if not torch.accelerator.is_available():
        ranks, part = min(ranks, 2 * processes), min(part, IMAGES_ON_CPU)
    return replace(
        recipe,
        batch=ranks * part,
        virtual_ranks=ranks,
        model=replace(recipe.model, pretrained=False),
        data=replace(recipe.data, subset=0),
        distill=replace(recipe.distill, store=""),
        eval=replace(recipe.eval, every_epochs=0, batch=EVALUATED),
        log=replace(recipe.log, every_steps=1),
    )


def report(recipe: Recipe, rehearsed: Recipe, images: int, output: Path) -> float:
    """Print what was measured, and the full run that follows from it; return the images/s of all processes."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if line["kind"] == "train"][1 : STEPS - 1]
    speed = sum(line["images_per_second"] for line in timed) / len(timed)
    wait = sum(line["data_wait"] for line in timed) / len(timed)
    processes, _ = processes_of_launch()
    order = order_on(recipe, (images,))
    steps = recipe.epochs * order.steps_per_epoch
    parameters, flops = measure(recipe)
    saved = sum(file.stat().st_size for file in (output / "checkpoints" / f"step-{STEPS:08d}").iterdir())
    shares = [len(hosted(recipe.virtual_ranks, processes, p)) for p in range(processes)]
    hours = steps * recipe.batch / speed / 3600
    table = Table(title=f"Rehearsal of {recipe.name}", show_header=False)
    for row in (
        ("model", f"{recipe.model.name}, {parameters:,} parameters"),
        ("teacher", recipe.distill.teacher or "none"),
        ("forward pass of one image", f"{flops / 1e9:.2f} GFLOPs ({flops / 2e9:.2f} G multiply-adds)"),
        (
            "rehearsed",
            f"{STEPS} steps of {rehearsed.batch} images; stopped after {STEPS - 1}, restored, evaluated",
        ),
        ("speed", f"{speed:.1f} images/s in {resolve_precision(recipe.precision)}, over {len(timed)} steps"),
        ("data wait", f"{wait:.1%} of the step"),
        (
            "peak memory",
            f"{peak_memory() / 2**30:.2f} GiB a process, at {rehearsed.rank_batch} images a pass",
        ),
        ("checkpoint", f"{saved / 1e6:,.0f} MB"),
        (
            "full run",
            f"{steps:,} steps: {recipe.epochs} epochs of {order.steps_per_epoch:,} steps, {images:,} images",
        ),
        ("batch", f"{recipe.batch} = {recipe.virtual_ranks} virtual ranks of {recipe.rank_batch}"),
        ("peak learning rate", f"{recipe.peak_lr:.3g}"),
        (
            "hosted here",
            f"{processes} process(es) with {shares} virtual ranks, micro-steps of {recipe.pass_batch} images",
        ),
        ("time here", f"{hours:,.1f} hours at this speed, evaluation not counted"),
    ):
        table.add_row(*row)
    Console().print(table)
    return speed


def measure(recipe: Recipe) -> tuple[int, int]:
    """Return the parameters of the model and the floating point operations of one image's forward pass."""
    net = on_paper(replace(recipe, model=replace(recipe.model, checkpoint="")))
    image = torch.empty(1, 3, recipe.model.img_size, recipe.model.img_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        net.eval()(image)
    return parameter_count(net), counter.get_total_flops()


def peak_memory() -> int:
    """Return the largest memory this process held, in bytes: the device's on a GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
