"""`vitrail bench loader`: views/s of the loader alone, beside those of other libraries on the same tars.

Loaders are started once and asked in turn. One that is not asked prepares what it may and waits, so a round first takes
what was prepared, and then counts for some seconds. Time is told twice: by the clock, and as processor time that all
processes of the loader had, which says what a core gives on a machine that others use too. The stages of our loader
are timed in this process.

A view is an image as the model sees it: with repeated augmentation an image is decoded once for several.
"""

import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from numpy.typing import NDArray
from rich.console import Console

from launch.loaders import Batches, lacking, loaders_of, named
from launch.measured import (
    ALL_CORES,
    Bench,
    Measured,
    alone,
    compared,
    cpu_seconds,
    rounds_of,
    settled,
    spread,
)
from pipeline.config import Recipe
from pipeline.data.augment import CROPS, augment
from pipeline.data.batch import Batch, TrainingBatches
from pipeline.data.device import model_input, on_device
from pipeline.data.loader import LOOK_AHEAD, StepSampler, load
from pipeline.devices import current
from pipeline.randomness import Purpose
from pipeline.session.rehearsal import made_up
from shards.dataset import Dataset
from shards.errors import BadRequest, Problem
from shards.index import Index
from shards.parallel import keep_to
from shards.reader import Reader
from shards.terminal import plain

SECONDS: Final = 5.0  # that a round counts, at least
PROFILED: Final = 3  # batches of a round of the profile
CORE_TIME: Final = "views/s of a core's own time"
TICK: Final = 1 / os.sysconf("SC_CLK_TCK")  # seconds: how exactly the system counts processor time
OURS: Final = "vitrail"
STAGES: Final = ("read", "decode", "crop", "policy", "collate", "transfer")


@dataclass(frozen=True, kw_only=True)
class BenchLoader(Bench):
    """Views/s of the loader alone, beside other libraries on the same tars, and the time of each of its stages.

    Example: vitrail bench loader deit_small --data DIR --feeds 2500
    """

    against: str = ""  # timm,torchvision,dali; empty: those of them that are installed
    workers: tuple[int, ...] = ()  # loader workers, a table for each number; none named: 1, and one a core
    feeds: float = 0.0  # images/s that this machine's devices train: what they ask of each core; 0: not asked

    def small(self, recipe: Recipe) -> Recipe:
        """Return the recipe that is measured: a virtual rank with all of its images, as nothing computes on them."""
        return replace(alone(recipe, "fp32"), batch=recipe.rank_batch)

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds, their ratios, the stages, and what the devices ask."""
        libraries, problems = named(self.against)
        if not all(number > 0 for number in self.workers):
            problems.append(Problem("workers", f"--workers {min(self.workers)}: one at least, of each number."))
        if not (0 <= self.feeds < math.inf):
            problems.append(Problem("feeds", f"--feeds {self.feeds}: images/s of the devices, 0 or more."))
        job = self.job(arguments, problems)
        numbers = list(self.workers) or sorted({1, len(ALL_CORES)})
        return self.tell(*bench_loader(job.recipe, job.dataset, libraries, numbers, self.feeds))


class Speed(NamedTuple):
    """Views/s of a round: by the clock, and of a second of processor time."""

    clock: float
    core: float


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where the time of a view goes."""

    what: str
    stages: dict[str, list[float]]  # by stage and round
    n: int  # rounds
    unit: str = "ms of a core's own time a view"

    def show(self) -> None:
        """Print them as a table."""
        sums = [sum(times) for times in zip(*self.stages.values(), strict=True)]
        shares = {name: f"{sum(times) / sum(sums):.0%}" for name, times in self.stages.items()}
        rows = {**self.stages, "all": sums}
        Console().print(spread(f"{self.what}; {self.unit}, {self.n} rounds", "stage", rows, 3, shares))


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What devices ask of the cores of this machine, and what those give."""

    what: str = "what devices ask of the loader"
    rate: float  # images/s of the devices
    cores: int
    asked: float  # views/s of each core
    measured: float  # views/s of a core's own time
    cores_needed: int
    unit: str = CORE_TIME

    def show(self) -> None:
        """Print it as a sentence."""
        enough = "enough" if self.cores_needed <= self.cores else "too few"
        says = (
            f"{self.rate:g} images/s ask {self.asked:.1f} views/s of each of {self.cores} cores. A core gives "
            f"{self.measured:.1f} in its own time: it takes {self.cores_needed} cores, and these are {enough}."
        )
        Console().print(plain(says))


def bench_loader(
    recipe: Recipe, dataset: Dataset | None, libraries: list[str], workers: list[int], feeds: float
) -> list[Measured | Stages | Feeding]:
    """Prepare a recipe's batches beside other libraries, with each number of workers, and alone by stages.

    Raises BadRequest for data behind a URL, for which webdataset would start a program.
    """
    if dataset and dataset.splits["train"].cache:
        raise BadRequest.of(
            "data", f"--data {dataset.named}: webdataset would run `curl` for it. Name tars that are on this machine."
        )
    with tempfile.TemporaryDirectory() as scratch:
        index = (dataset or made_up(recipe, Path(scratch) / "data")).splits["train"]
        stages = profile(recipe, index)
        measured = [race(recipe, index, libraries, number) for number in workers]
    results: list[Measured | Stages | Feeding] = [table for tables in measured for table in tables]
    if feeds:
        results.append(feeding(feeds, measured[-1][1]))
    return [*results, *stages]


def with_repeats(recipe: Recipe) -> dict[str, Recipe]:
    """Return our arms: the recipe as it is and, where it repeats images, without that."""
    arms = {OURS: recipe}
    if recipe.data.repeats > 1:
        arms[f"{OURS}, repeats 1"] = replace(recipe, data=replace(recipe.data, repeats=1))
    return arms


# ---- speeds --------------------------------------------------------------------------------------------------------


def race(recipe: Recipe, index: Index, libraries: list[str], workers: int) -> tuple[Measured, Measured]:
    """Return the views/s of all arms with so many workers: by the clock, and of a core's own time.

    The ratios are over the first of the libraries.
    """
    others = loaders_of(libraries, recipe)
    tars = [index.tar(shard) for shard in range(len(index.shards))]
    notes = {
        name: f"an image is decoded for {ours.data.repeats} views" if ours.data.repeats > 1 else ""
        for name, ours in with_repeats(recipe).items()
    }
    notes |= {name: "; ".join(filter(None, (other.note, lacking(recipe)))) for name, other in others.items()}
    starts = {name: partial(our_batches, ours, index, workers) for name, ours in with_repeats(recipe).items()}
    starts |= {name: partial(other.start, recipe, tars, workers) for name, other in others.items()}
    arms = {}
    with ExitStack() as stack:
        for name, start in starts.items():
            with on_cores(workers):
                batches = stack.enter_context(closing(start()))
            arms[name] = partial(a_round, batches, recipe.batch, workers)
        settled()
        rounds = rounds_of(arms)
    what = f"loader of {recipe.name}, {workers} worker(s), {recipe.batch} views a batch"
    over = next(iter(others), OURS)
    clock = [{name: speed.clock for name, speed in speeds.items()} for speeds in rounds]
    core = [{name: speed.core for name, speed in speeds.items()} for speeds in rounds]
    return compared(what, clock, over, notes, "views/s"), compared(what, core, over, notes, CORE_TIME)


def our_batches(recipe: Recipe, index: Index, workers: int) -> Batches:
    """Start our loader."""
    sampler = StepSampler(range(2**31), range(1))
    batches: Batches = iter(load(TrainingBatches(recipe, index), sampler, workers=workers, pin_memory=False))
    return batches


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep the processes that are started within to so many cores, where the system can."""
    keep_to(sorted(ALL_CORES)[:count])
    try:
        yield
    finally:
        keep_to(ALL_CORES)


def a_round(batches: Batches, views: int, workers: int) -> Speed:
    """Return the speed at which batches come, once those are taken that were prepared ahead.

    They are taken one a worker at a time, so that each has done the same.
    """
    for _ in range((LOOK_AHEAD + 1) * workers):
        next(batches)
    taken, used, started = 0, cpu_seconds(), time.perf_counter()
    seconds = 0.0
    while not taken or seconds < SECONDS:
        for _ in range(workers):
            next(batches)
        taken += workers
        seconds = time.perf_counter() - started
    used = max(cpu_seconds() - used, TICK)
    settled()
    return Speed(views * taken / seconds, views * taken / used)


def feeding(rate: float, core_time: Measured) -> Feeding:
    """Return what devices of a rate ask, by what our loader gives of a core's own time."""
    cores, gives = len(ALL_CORES), statistics.median(core_time.speeds[OURS])
    needed = math.ceil(rate / gives)
    return Feeding(rate=rate, cores=cores, asked=rate / cores, measured=gives, cores_needed=needed)


# ---- stages --------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Processor time of this process by stage; a stage within another stops that one's time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stage, self._since = "", 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within as that of a stage."""
        outer = self._now(name)
        try:
            yield
        finally:
            self._now(outer)

    def _now(self, stage: str) -> str:
        """Begin a stage, and return the one that this ends."""
        now, ended = time.process_time(), self._stage
        if ended:
            self.seconds[ended] += now - self._since
        self._stage, self._since = stage, now
        return ended


class TimedReader(Reader):
    """A reader that counts its time."""

    def __init__(self, index: Index, watch: Stopwatch) -> None:
        super().__init__(index)
        self.watch = watch

    def read(self, sample: int) -> bytes:
        """As `Reader.read`."""
        with self.watch.stage("read"):
            return super().read(sample)


class TimedBatches(TrainingBatches):
    """Batches that count the time of their stages; what is no other's is `collate`: order, writing, boxes, mixing."""

    def __init__(self, recipe: Recipe, index: Index, watch: Stopwatch) -> None:
        super().__init__(recipe, index)
        self.watch = watch
        self.reader = TimedReader(index, watch)
        self.after_crop = replace(recipe.augment, crop="whole")  # which leaves a view that has its size as it is

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        with self.watch.stage("collate"):
            return super().__getitem__(item)

    def _load(self, *arguments: Any) -> Any:
        with self.watch.stage("decode"):
            return super()._load(*arguments)

    def view(self, image: Any, sample: int, epoch: int, copy: int, done: list[str] | None = None) -> NDArray[Any]:
        """As `TrainingBatches.view`, by its two stages."""
        settings, size = self.recipe.augment, self.recipe.model.img_size
        with self.watch.stage("crop"):
            rng = self._generators.at(Purpose.AUGMENT, epoch=epoch, sample=sample, copy=copy)
            cropped = CROPS[settings.crop](image, size, settings, rng)
        with self.watch.stage("policy"):  # and flip
            return augment(cropped, size, self.after_crop, rng, done)


def profile(recipe: Recipe, index: Index) -> list[Stages]:
    """Return the time of each stage of a view, from a tar to what the model takes, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader worker; more would wait for each other, which counts as work
    try:
        rounds = rounds_of({name: by_stage(ours, index) for name, ours in with_repeats(recipe).items()})
    finally:
        torch.set_num_threads(threads)
    return [
        Stages(
            what=f"stages of {name}, {recipe.name}",
            stages={stage: [times[name][stage] for times in rounds] for stage in STAGES},
            n=len(rounds),
        )
        for name in rounds[0]
    ]


def by_stage(recipe: Recipe, index: Index) -> Callable[[], dict[str, float]]:
    """Return what makes some batches and returns the ms of processor time that each stage of a view took."""
    watch = Stopwatch()
    batches = TimedBatches(recipe, index, watch)
    steps = count()

    def a_round() -> dict[str, float]:
        watch.seconds.clear()
        for step in islice(steps, PROFILED):
            batch = batches[step, 0]
            with watch.stage("transfer"):
                model_input(on_device(batch, current()), recipe.model)
        return {stage: 1000 * watch.seconds[stage] / (PROFILED * recipe.batch) for stage in STAGES}

    return a_round
