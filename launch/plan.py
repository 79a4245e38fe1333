"""`vitrail plan`: hosting, steps, bytes, memory, hours and cost of a run on a cluster, worked out and not tried.

Where nothing was measured, hours follow from published rates (`launch/rates.py`), and from what a core prepares.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from launch.rates import GPUS, Estimate, GpuName, published
from launch.verb import Json, RecipeVerb, resolved
from pipeline.config import EngineName, Precision, Recipe
from pipeline.fields import flag
from pipeline.hosting import Hosting
from pipeline.job import PLANNING, Job
from pipeline.memory import pass_bytes, state_bytes
from pipeline.micro_batch import even_size, most_images
from pipeline.session.rehearsal import MeasuredSpeed, forward_flops, measured_speed
from shards.errors import Problem
from shards.terminal import plain

IMAGE_BYTES: Final = 110_000  # mean JPEG of ImageNet-1k, where there is no data to ask
FLOAT: Final = 4  # bytes
NOTHING: Final = MeasuredSpeed()
# views/s of one core, by the views made of a decoded image: docs/speed.md, 224 px, an Intel Xeon (AVX-512)
VIEWS_OF_A_CORE: Final = {1: 242.0, 3: 341.0}


@dataclass(frozen=True, kw_only=True)
class MakePlan(RecipeVerb):
    """Work out a run on a cluster: hosting, steps, bytes, memory, hours, cost.

    Takes the recipe's own fields too: --data, --batch, --epochs, ...; without --data the recipe's own number of images.

    Example: vitrail plan deit_base --nodes 2 --gpus-per-node 8 --gpu h100
    """

    reads = ("--data", "--output")  # where a dry run keeps its speed

    nodes: int = 1  # of the cluster
    gpus_per_node: int = 8  # one process each
    engine: EngineName = "ddp"  # how processes share weights, gradients and moments
    gpu: Literal["", GpuName] = ""  # whose published rates and memory to plan with; empty: those of each
    cores_per_gpu: int = 16  # for loader workers; 8 GPUs of a DGX A100 share 128
    images_per_second: float = 0.0  # of one GPU; 0: what --dry-run measured into the same --output, if it did
    link: float = 12.5  # GB/s that a node sends to another
    price: float = 0.0  # of a GPU-hour, in any currency
    precision: Precision = "bf16"  # of the activations
    json: Json = False  # for scripts, instead of a table

    def __call__(self, arguments: list[str]) -> int:
        """Print a table, or JSON for scripts."""
        found = [
            Problem(name, f"--{flag(name)} is {getattr(self, name)}; it must be more than 0.")
            for name in ("nodes", "gpus_per_node", "cores_per_gpu", "link")
            if getattr(self, name) <= 0
        ]
        processes = max(1, self.nodes * self.gpus_per_node)  # of fewer nothing follows
        hosting = Hosting(processes=processes, engine=self.engine, precision=self.precision)
        job = resolved(self.request(arguments), PLANNING, hosting, found)
        measured = measured_speed(job)
        if self.images_per_second:
            measured = measured._replace(images_per_second=self.images_per_second, where="")
        cluster = Cluster(
            self.nodes,
            self.gpus_per_node,
            self.link,
            measured,
            self.price,
            gpu=self.gpu or None,
            cores_per_gpu=self.cores_per_gpu,
        )
        plan = make_plan(job, cluster)
        if self.json:
            print(json.dumps(asdict(plan)))
        else:
            show(job, cluster, plan)
        return 0


VERB: Final = MakePlan


@dataclass(frozen=True)
class Cluster:
    """What a job is planned for, beside its hosting."""

    nodes: int
    gpus_per_node: int
    link: float = 12.5  # bytes/s times 1e9 that a node sends to another
    measured: MeasuredSpeed = NOTHING  # of one GPU, and of a core
    price: float = 0.0  # of a GPU-hour
    gpu: GpuName | None = None  # whose published rates to plan with; None: those of each
    cores_per_gpu: int = 16


@dataclass(frozen=True)
class OnGpu:
    """What published rates say of the run on GPUs of a kind."""

    gpu: str
    images_per_second: float  # of one of them
    source: str
    compute_hours: float  # if the loader kept up
    hours: float  # of the slower of the two
    bound_by: Literal["compute", "loader"]
    memory: int  # bytes of one of them
    pass_images: int  # of a forward pass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What follows.  Bytes are of one process, if nothing else is said; hours and cost are None without a speed."""

    shares: list[int]  # virtual ranks of each process
    micro_batches: int  # forward passes of the busiest process in a step, on the GPU that was named
    micro_batch_size: int  # images of one of them; a virtual rank's, where none was named
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
    hours: float | None  # as measured; else of the GPU that was named, with published rates
    gpu_hours: float | None
    cost: float | None
    views_per_core: float  # that one core prepares in a second
    views_source: str
    loader_hours: float  # if the GPUs kept up
    gpus: list[OnGpu]  # with published rates; none where something was measured and none was named


def make_plan(job: Job, cluster: Cluster) -> Plan:
    """Return the plan of a job on a cluster."""
    recipe, hosting, order = job.recipe, job.hosting, job.order
    mean_bytes = sum(shard.bytes for shard in job.index.shards) / len(job.index) if job.dataset else IMAGE_BYTES
    shares = hosting.shares(recipe.virtual_ranks)
    images = shares[0] * recipe.rank_batch

    def passed(gpu: GpuName | None) -> int:
        return even_size(images, most_images(job, GPUS[gpu].memory if gpu else None))

    micro_batch_size = passed(cluster.gpu)
    micro_batches = -(-images // micro_batch_size)
    image, beside = pass_bytes(recipe, hosting.precision)
    weights, gradients = FLOAT * job.parameter_count, FLOAT * job.trained_parameters
    shown = order.steps_per_epoch * recipe.batch / recipe.data.repeats  # images, each read once
    on_node = sum(shares[: cluster.gpus_per_node]) / recipe.virtual_ranks  # the first node has most
    exchanged = exchanged_bytes(cluster.nodes, hosting.engine, weights, gradients, micro_batches)
    steps = job.schedule.total_steps
    views = views_of_a_core(recipe, cluster.measured)

    def hours_at(images_per_second: float) -> float:
        pace = images_per_second * recipe.virtual_ranks / shares[0]  # the busiest process sets it
        return steps * recipe.batch / pace / 3600

    speed = cluster.measured.images_per_second
    loader_hours = hours_at(views.images_per_second * cluster.cores_per_gpu)
    gpus: list[OnGpu] = []
    if cluster.gpu or not speed:
        flops = forward_flops(recipe)
        for name in [cluster.gpu] if cluster.gpu else GPUS:
            rate, gpu = published(name, flops), GPUS[name]
            compute_hours = hours_at(rate.images_per_second)
            gpus.append(
                OnGpu(
                    gpu=gpu.name,
                    images_per_second=rate.images_per_second,
                    source=rate.source,
                    compute_hours=compute_hours,
                    hours=max(compute_hours, loader_hours),
                    bound_by="compute" if compute_hours >= loader_hours else "loader",
                    memory=gpu.memory,
                    pass_images=passed(name),
                )
            )
    hours = hours_at(speed) if speed else gpus[0].hours if cluster.gpu else None
    gpu_hours = None if hours is None else hours * hosting.processes
    return Plan(
        shares=shares,
        micro_batches=micro_batches,
        micro_batch_size=micro_batch_size,
        batch=recipe.batch,
        peak_lr=recipe.peak_lr,
        steps_per_epoch=order.steps_per_epoch,
        steps=steps,
        parameters=job.parameter_count,
        trained=job.trained_parameters,
        memory=state_bytes(job) | {"activations": micro_batch_size * image + beside},
        read_bytes_epoch=round(shown * mean_bytes * on_node),
        exchanged_bytes=exchanged,
        exchange_seconds=exchanged / (cluster.link * 1e9),
        hours=hours,
        gpu_hours=gpu_hours,
        cost=gpu_hours * cluster.price if gpu_hours is not None and cluster.price else None,
        views_per_core=views.images_per_second,
        views_source=views.source,
        loader_hours=loader_hours,
        gpus=gpus,
    )


def views_of_a_core(recipe: Recipe, measured: MeasuredSpeed) -> Estimate:
    """Return the views/s that one core prepares: as a rehearsal of this job measured, else as documented."""
    if measured.views_per_core:
        return Estimate(measured.views_per_core, f"as rehearsed on {measured.device}")
    copies = max(number for number in VIEWS_OF_A_CORE if number <= recipe.data.repeats)
    says = f"docs/speed.md, of an Intel Xeon at 224 px, {copies} view(s) a decoded image; not of your cores"
    return Estimate(VIEWS_OF_A_CORE[copies], says)


def show(job: Job, cluster: Cluster, plan: Plan) -> None:
    """Print a plan as a table."""
    recipe = job.recipe
    title = f"{recipe.name} on {cluster.nodes} x {cluster.gpus_per_node} GPUs, {job.hosting.engine}"
    table = Table(title=plain(title))
    table.add_column("what")
    table.add_column("how much")
    gigabytes = {part: f"{size / 1e9:.2f}" for part, size in plan.memory.items()}
    rows = [
        ("hosting", f"{recipe.virtual_ranks} virtual ranks of {recipe.rank_batch} images: {plan.shares} a process"),
        ("micro-batches of a step", f"{plan.micro_batches} of {plan.micro_batch_size} images"
         + ("" if cluster.gpu or recipe.micro_batch != "auto" else ", a virtual rank's; for what fits name a --gpu")),
        ("batch", f"{plan.batch} images, peak rate {plan.peak_lr:.3g}"),
        ("steps", f"{plan.steps:,}: {recipe.epochs} epochs of {plan.steps_per_epoch:,}"),
        ("parameters", f"{plan.parameters:,}, {plan.trained:,} of them trained"),
        ("memory a process", ", ".join(f"{part} {size}" for part, size in gigabytes.items())
         + f": {sum(plan.memory.values()) / 1e9:.2f} GB"),
        ("a node reads", f"{plan.read_bytes_epoch / 1e9:.2f} GB an epoch"),
        ("a node sends", f"{plan.exchanged_bytes / 1e6:,.0f} MB a step, {plan.exchange_seconds * 1e3:.1f} ms at "
         f"{cluster.link} GB/s"),
    ]  # fmt: skip
    if speed := cluster.measured.images_per_second:
        rows.append(("hours", f"{plan.hours:,.1f} at {speed:.4g} images/s a GPU{cluster.measured.where}"))
    for on in plan.gpus:
        rows.append(
            (
                f"hours on {on.gpu}",
                f"{on.compute_hours:,.1f} at {on.images_per_second:,.0f} images/s a GPU, {on.source}; the loader's "
                f"{plan.loader_hours:,.1f}: {on.bound_by}-bound; a pass holds {on.pass_images} images",
            )
        )
    rows.append(
        (
            "hours of the loader",
            f"{plan.loader_hours:,.1f} with {cluster.cores_per_gpu} cores a GPU, of {plan.views_per_core:,.0f} views/s "
            f"a core ({plan.views_source})",
        )
    )
    if recipe.distill.teacher and not recipe.distill.store and plan.gpus:
        rows.append(("teacher", "its forward passes are in no published rate: --dry-run the recipe on a GPU"))
    if plan.gpu_hours is not None:
        rows.append(("GPU-hours", f"{plan.gpu_hours:,.0f}" + (f", {plan.cost:,.0f} in all" if plan.cost else "")))
    for row in rows:
        table.add_row(*map(plain, row))
    Console().print(table)


def exchanged_bytes(nodes: int, engine: EngineName, weights: int, gradients: int, micro_batches: int) -> int:
    """Return the bytes that a node sends to others in a step, for weights and gradients of so many bytes.

    A ring around N nodes sends 2 (N - 1) / N of what it adds up (reduce-scatter, all-gather), (N - 1) / N in either
    half alone.
    """
    if nodes == 1:
        return 0
    half = (nodes - 1) / nodes
    return round(
        half
        * {
            "ddp": 2 * gradients,
            "zero1": 2 * gradients,
            "zero2": gradients * micro_batches + gradients,  # gradients go to their owner after every micro-batch
            "zero3": (2 * weights + gradients) * micro_batches,  # weights come before every pass, forward and backward
            "fsdp2": 2 * weights * micro_batches + gradients,
        }[engine]
    )
