"""The plan of a run on a cluster: hosting, steps, bytes, memory, hours and cost, worked out and not tried."""

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.batch import order_on
from pipeline.config import EngineName, Recipe
from pipeline.finetune import by_part
from pipeline.hosting import hosted
from pipeline.models import Student, build_student, on_paper
from shards.dataset import Dataset

IMAGE_BYTES: Final = 110_000  # mean JPEG of ImageNet-1k, where there is no data to ask
FLOAT: Final = 4  # bytes
MOMENTS: Final = {"adamw": 2, "adam": 2, "lamb": 2, "sgd": 1}  # tensors the optimizer keeps for each parameter


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run is planned for."""

    nodes: int
    gpus_per_node: int
    engine: EngineName = "ddp"
    link: float = 12.5  # bytes/s times 1e9 that a node sends to another
    images_per_second: float = 0.0  # of one GPU; 0: not known
    measured: str = ""  # where that comes from, if not from the user
    price: float = 0.0  # of a GPU-hour
    bf16: bool = True

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What follows.  Bytes are of one process, if nothing else is said; hours and cost are None without a speed."""

    shares: list[int]  # virtual ranks of each process
    micro_steps: int  # forward passes of the busiest process in a step
    micro_batch: int  # images of one of them
    batch: int
    peak_lr: float
    steps_per_epoch: int
    steps: int
    parameters: int
    trained: int
    memory: dict[str, int]
    read_bytes_epoch: int  # of a node
    exchanged_bytes: int  # that a node sends in a step
    exchange_seconds: float
    hours: float | None
    gpu_hours: float | None
    cost: float | None


def make_plan(recipe: Recipe, dataset: Dataset | None, cluster: Cluster) -> Plan:
    """Return the plan of a recipe that has no problem on that cluster."""
    index = dataset.splits["train"] if dataset else None
    images = len(index) if index else recipe.data.images
    mean_bytes = sum(shard.bytes for shard in index.shards) / len(index) if index else IMAGE_BYTES
    order = order_on(recipe, (images,))
    shares = [len(hosted(recipe.virtual_ranks, cluster.processes, p)) for p in range(cluster.processes)]
    micro_steps = shares[0] * recipe.passes
    parts = by_part(on_paper(replace(recipe, model=replace(recipe.model, checkpoint=""))))
    parameters, trained = (sum(of_part[which] for of_part in parts.values()) for which in (1, 0))
    shown = order.steps_per_epoch * recipe.batch / recipe.data.repeats  # images, each read once
    on_node = sum(shares[: cluster.gpus_per_node]) / recipe.virtual_ranks  # the first node has most
    exchanged = exchanged_bytes(cluster, FLOAT * parameters, FLOAT * trained, micro_steps)
    steps = recipe.epochs * order.steps_per_epoch
    hours = None
    if cluster.images_per_second:
        # the busiest process sets the pace
        pace = cluster.images_per_second * recipe.virtual_ranks / shares[0]
        hours = steps * recipe.batch / pace / 3600
    gpu_hours = None if hours is None else hours * cluster.processes
    return Plan(
        shares=shares,
        micro_steps=micro_steps,
        micro_batch=recipe.pass_batch,
        batch=recipe.batch,
        peak_lr=recipe.peak_lr,
        steps_per_epoch=order.steps_per_epoch,
        steps=steps,
        parameters=parameters,
        trained=trained,
        memory=memory(recipe, cluster, FLOAT * parameters, FLOAT * trained, recipe.pass_batch),
        read_bytes_epoch=round(shown * mean_bytes * on_node),
        exchanged_bytes=exchanged,
        exchange_seconds=exchanged / (cluster.link * 1e9),
        hours=hours,
        gpu_hours=gpu_hours,
        cost=gpu_hours * cluster.price if gpu_hours is not None and cluster.price else None,
    )


def show(recipe: Recipe, cluster: Cluster, plan: Plan) -> None:
    """Print a plan as a table."""
    table = Table(title=f"{recipe.name} on {cluster.nodes} x {cluster.gpus_per_node} GPUs, {cluster.engine}")
    table.add_column("what")
    table.add_column("how much")
    gigabytes = {part: f"{size / 1e9:.2f}" for part, size in plan.memory.items()}
    rows = [
        ("hosting", f"{recipe.virtual_ranks} virtual ranks of {recipe.rank_batch} images: {plan.shares} a process"),
        ("passes of a step", f"{plan.micro_steps} of {plan.micro_batch} images"),
        ("batch", f"{plan.batch} images, peak rate {plan.peak_lr:.3g}"),
        ("steps", f"{plan.steps:,}: {recipe.epochs} epochs of {plan.steps_per_epoch:,}"),
        ("parameters", f"{plan.parameters:,}, {plan.trained:,} of them trained"),
        ("memory a process", ", ".join(f"{part} {size}" for part, size in gigabytes.items())
         + f": {sum(plan.memory.values()) / 1e9:.2f} GB"),
        ("a node reads", f"{plan.read_bytes_epoch / 1e9:.2f} GB an epoch"),
        ("a node sends", f"{plan.exchanged_bytes / 1e6:,.0f} MB a step, {plan.exchange_seconds * 1e3:.1f} ms at "
         f"{cluster.link} GB/s"),
    ]  # fmt: skip
    if plan.hours is None:
        rows.append(("hours", "not known: say --images-per-second of one GPU, or --dry-run the recipe on one"))
    else:
        rows.append(("hours", f"{plan.hours:,.1f} at {cluster.images_per_second:.4g} images/s a GPU{cluster.measured}"))
        rows.append(("GPU-hours", f"{plan.gpu_hours:,.0f}" + (f", {plan.cost:,.0f} in all" if plan.cost else "")))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def exchanged_bytes(cluster: Cluster, weights: int, gradients: int, micro_steps: int) -> int:
    """Return the bytes that a node sends to others in a step, for weights and gradients of so many bytes.

    A ring around N nodes sends 2 (N - 1) / N of what it adds up (reduce-scatter, all-gather), (N - 1) / N in either
    half alone.
    """
    if cluster.nodes == 1:
        return 0
    half = (cluster.nodes - 1) / cluster.nodes
    return round(
        half
        * {
            "ddp": 2 * gradients,
            "zero1": 2 * gradients,
            "zero2": gradients * micro_steps + gradients,  # gradients go to their owner after every pass
            "zero3": (2 * weights + gradients) * micro_steps,  # weights come before every pass, and its backward one
            "fsdp2": 2 * weights * micro_steps + gradients,
        }[cluster.engine]
    )


def memory(recipe: Recipe, cluster: Cluster, weights: int, gradients: int, micro_batch: int) -> dict[str, int]:
    """Return the bytes a process needs, by part."""
    sharing = {
        "weights": ("zero3", "fsdp2"),
        "gradients": ("zero2", "zero3", "fsdp2"),
        "moments": ("zero1", "zero2", "zero3", "fsdp2"),
        "average": ("zero3", "fsdp2"),
    }
    whole = {
        "weights": weights,
        "gradients": gradients,
        "moments": gradients * MOMENTS[recipe.optim.name],
        "average": weights if recipe.ema.decay else 0,
    }
    shared = {
        part: -(-size // cluster.processes) if cluster.engine in sharing[part] else size for part, size in whole.items()
    }
    images, beside = activations(recipe, bf16=cluster.bf16)
    return shared | {"activations": micro_batch * images + beside}


def activations(recipe: Recipe, *, bf16: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the backward pass, measured: of an image, and beside the images.

    Beside them are the weights in bf16.
    """
    settings = replace(recipe, model=replace(recipe.model, checkpoint="", pretrained=False))
    student = Student(build_student(settings)).train()
    two, four = (kept_bytes(student, recipe.model.img_size, images, bf16=bf16) for images in (2, 4))
    image, beside = (four - two) // 2, 2 * two - four
    if recipe.compute.activation_checkpointing:  # in the backward pass a block at a time keeps what it else would
        keeping = replace(recipe, compute=replace(recipe.compute, activation_checkpointing=False))
        blocks = len(list(student.net.get_submodule("blocks").children()))
        image += activations(keeping, bf16=bf16)[0] // blocks
    return image, beside


def kept_bytes(student: Student, size: int, images: int, *, bf16: bool) -> int:
    """Return the bytes that a forward pass of some images keeps."""
    own = {tensor.untyped_storage().data_ptr() for tensor in student.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks: Any = saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = student(torch.zeros(images, 3, size, size), torch.zeros(images, dtype=torch.int64))
    del logits  # which held them until here
    return sum(kept.values())
