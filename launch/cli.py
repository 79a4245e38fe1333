"""The `vitrail` command."""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.config import EngineName, Recipe
from shards.build import build
from shards.dataset import Dataset, index_dataset, read_dataset, verify_split
from shards.errors import BadRequest, SourceError, VitrailError

if TYPE_CHECKING:
    from launch.bench import Measured

Json = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build shards from images: OUT/<split>/*.tar, the index, and OUT/dataset.json."""

    source: tyro.conf.Positional[str]
    """Folder of class folders (train/, val/, test/ above them or not), a zip of one, `digits`, `torchvision:NAME`"""
    out: tyro.conf.Positional[Path]
    """Folder to write"""
    samples_per_shard: int = 1000  # images a tar
    holdout: float = 0.0  # share of the images to set aside as `val`, for a source with one split
    classes: tuple[str, ...] = ()  # only these, in this order; all, if none is named
    processes: int = os.cpu_count() or 1
    parts: int = 1  # jobs beside each other, on one file system
    part: int = 0  # the one that this is, from 0

    def __call__(self) -> int:
        """Build, and say what came out."""
        if self.samples_per_shard < 1 or self.processes < 1 or not 0 <= self.holdout < 1:
            raise BadRequest(["--samples-per-shard and --processes start at 1, --holdout lies in [0, 1)."])
        if not 0 <= self.part < self.parts:
            raise BadRequest([f"--part {self.part}: of --parts {self.parts} there are 0 to {self.parts - 1}."])
        try:
            dataset = build(
                self.source,
                self.out,
                samples_per_shard=self.samples_per_shard,
                holdout=self.holdout,
                processes=self.processes,
                classes=self.classes,
                part=self.part,
                parts=self.parts,
            )
        except SourceError as error:
            raise BadRequest([str(error)]) from error
        if dataset:
            show(dataset)
        else:
            print(f"{self.out}: part {self.part} of {self.parts} is done; the last one to end writes dataset.json.")
        return 0


@dataclass(frozen=True, kw_only=True)
class MakeIndex:
    """Index tars made elsewhere, DIR/<split>/*.tar, as they are."""

    folder: tyro.conf.Positional[Path]
    processes: int = os.cpu_count() or 1

    def __call__(self) -> int:
        """Index, and say what is there."""
        show(index_dataset(self.folder, self.processes))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every byte of the shards against the index."""

    folder: tyro.conf.Positional[Path]
    json: Json = False

    def __call__(self) -> int:
        """Return 0 if all is well, else 1."""
        dataset = read_dataset(self.folder)
        found = [problem for index in dataset.splits.values() for problem in verify_split(index)]
        samples = sum(len(index) for index in dataset.splits.values())
        if self.json:
            print(json.dumps({"samples": samples, "problems": found}))
        else:
            print("\n".join(found) or f"{self.folder}: all {samples:,} samples are as the index says.")
        return 1 if found else 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Count and describe a data set."""

    folder: tyro.conf.Positional[Path]
    json: Json = False

    def __call__(self) -> int:
        """Print a table, or JSON for scripts."""
        dataset = read_dataset(self.folder)
        if self.json:
            print((self.folder / "dataset.json").read_text(), end="")
        else:
            show(dataset)
        return 0


@dataclass(frozen=True, kw_only=True)
class ShowOrder:
    """Print the views of a global batch: virtual rank, slot, sample key, copy."""

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    data: Path
    epoch: int = 0
    step: int = 0  # within the epoch
    seed: int | None = None  # instead of the recipe's
    json: Json = False

    def __call__(self) -> int:
        """Print one line a view, or one JSON list."""
        from launch.recipes import load_recipe
        from pipeline.batch import order_of

        recipe = load_recipe(self.recipe)
        recipe = recipe if self.seed is None else replace(recipe, seed=self.seed)
        index = read_dataset(self.data).splits["train"]
        order = order_of(recipe, index)
        if not 0 <= self.step < order.steps_per_epoch or self.epoch < 0:
            raise BadRequest([f"--step {self.step}: an epoch has the steps 0 to {order.steps_per_epoch - 1} here."])
        views = []
        for rank in range(recipe.virtual_ranks):
            of_rank = order.views(self.epoch * order.steps_per_epoch + self.step, rank)
            for slot, (sample, copy) in enumerate(zip(of_rank.samples.tolist(), of_rank.copies.tolist(), strict=True)):
                views.append({"virtual_rank": rank, "slot": slot, "key": index.key(sample), "copy": copy})
        if self.json:
            print(json.dumps(views))
        else:
            for view in views:
                print(*view.values(), sep="\t")
        return 0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draw images as the model sees them, original beside views."""

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    data: Path
    output: Path  # a .png

    def __call__(self) -> int:
        """Write the picture."""
        from launch.preview import draw_preview
        from launch.recipes import load_recipe

        draw_preview(load_recipe(self.recipe), read_dataset(self.data).splits["train"], self.output)
        print(self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Teach:
    """Store a teacher's answers for every view of a recipe, without training a student.

    Takes the recipe's own fields too: --data, --distill.store, --distill.checkpoint, --seed, --epochs, ...
    Stop it and start it as you like; what is there stays. As N jobs beside each other: --parts N --part 0, 1, ...
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    part: int = 0  # of the parts
    parts: int = 1  # into which the work is divided

    def __call__(self, arguments: list[str]) -> int:
        """Ask, store, and say how many views were answered."""
        from launch.recipes import load_recipe
        from pipeline.request import check, parse
        from pipeline.teach import teach

        request = parse(load_recipe(self.recipe), arguments)
        found, dataset = check(request, trains=False)
        if not request.recipe.distill.teacher:
            found.append(f"{self.recipe} has no teacher; name one with --distill.teacher.")
        if not request.recipe.distill.store:
            found.append("--distill.store is missing: name the folder of the answers.")
        if not 0 <= self.part < self.parts:
            found.append(f"--part {self.part} of --parts {self.parts}: parts are counted from 0.")
        if found:
            raise BadRequest(found)
        assert dataset
        views = teach(request, dataset, part=self.part, parts=self.parts)
        print(f"{request.recipe.distill.store}: {views:,} views answered.")
        return 0


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Fine-tune with several strategies on one data set: accuracy against trained parameters and seconds.

    Takes the recipe's own fields too: --data, --output, --model.checkpoint, --epochs, ...
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    rungs: tuple[str, ...] = ("linear", "partial-1/2", "partial-1", "partial-2", "full", "gradual")  # strategies

    def __call__(self, arguments: list[str]) -> int:
        """Run what is not run yet, print the table, and draw ladder.png."""
        from launch.ladder import climb
        from launch.recipes import load_recipe
        from pipeline.request import parse

        return climb(parse(load_recipe(self.recipe), arguments), self.rungs)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Try in seconds what a run will need: devices, ports, an all-reduce, shared memory, disk, clock, shards.

    Under a launcher (accelerate launch -m launch.cli doctor ...) the all-reduce is over its processes, on all nodes.
    Takes the recipe's own fields too: --data, --output, --data.workers, ...
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""

    def __call__(self, arguments: list[str]) -> int:
        """Print a table; return 1 if something is bad."""
        from launch.doctor import examine, show
        from launch.recipes import load_recipe
        from pipeline.hosting import processes_of_launch
        from pipeline.request import parse

        request = parse(load_recipe(self.recipe), arguments)
        findings = examine(request.recipe, request.data, request.folder)
        if processes_of_launch()[1] == 0:
            show(findings)
        return 1 if any(finding.well is False for finding in findings) else 0


@dataclass(frozen=True, kw_only=True)
class MakePlan:
    """Work out a run on a cluster: hosting, steps, bytes, memory, hours, cost.

    Takes the recipe's own fields too: --data, --batch, --epochs, ...; without --data the recipe's own number of images.
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    nodes: int = 1
    gpus_per_node: int = 8
    engine: EngineName = "ddp"
    images_per_second: float = 0.0  # of one GPU; 0: what --dry-run measured into the same --output, if it did
    link: float = 12.5  # GB/s that a node sends to another
    price: float = 0.0  # of a GPU-hour, in any currency
    precision: Literal["bf16", "fp32"] = "bf16"  # of the activations
    json: Json = False

    def __call__(self, arguments: list[str]) -> int:
        """Print a table, or JSON for scripts."""
        from launch.plan import Cluster, make_plan, show
        from launch.recipes import load_recipe
        from pipeline.config import problems
        from pipeline.rehearsal import measured_speed
        from pipeline.request import check, parse

        request = parse(load_recipe(self.recipe), arguments)
        found, dataset = check(replace(request, dry_run=True))
        speed, measured = (self.images_per_second, "") if self.images_per_second else measured_speed(request)
        cluster = Cluster(
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            engine=self.engine,
            images_per_second=speed,
            measured=measured,
            link=self.link,
            price=self.price,
            bf16=self.precision == "bf16",
        )
        if min(self.nodes, self.gpus_per_node, self.link) <= 0:
            raise BadRequest(["--nodes, --gpus-per-node and --link must be more than 0."])
        found += [p for p in problems(request.recipe, dataset, cluster.processes, self.engine) if p not in found]
        if found:
            raise BadRequest(found)
        plan = make_plan(request.recipe, dataset, cluster)
        if self.json:
            print(json.dumps(asdict(plan)))
        else:
            show(request.recipe, cluster, plan)
        return 0


@dataclass(frozen=True, kw_only=True)
class MakeDrill:
    """Break a minute of your own run with signals, kills, a torn file, a full disk and a vanished shard.

    Takes the recipe's own fields too: --data, --batch, ...; without --data the images are made up. Says what survived.
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    config: str = ""  # of launch/configs; empty: cpu, or ddp_8gpu where there is a GPU
    processes: int = 0  # 0: one a GPU; two, where there is none

    def __call__(self, arguments: list[str]) -> int:
        """Print a table; return 1 if something did not survive."""
        import torch

        from launch.drill import drill
        from launch.recipes import load_recipe
        from pipeline.config import problems
        from pipeline.request import check, parse

        request = parse(load_recipe(self.recipe), arguments)
        found, dataset = check(replace(request, dry_run=True))
        config = self.config or ("ddp_8gpu" if torch.accelerator.is_available() else "cpu")
        processes = self.processes or min(torch.accelerator.device_count() or 2, request.recipe.virtual_ranks)
        engine = engine_named(config, found)
        found += [p for p in problems(request.recipe, dataset, processes, engine) if p not in found]
        if found:
            raise BadRequest(found)
        return drill(request, dataset, self.recipe, arguments, config, processes)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Print the job script of a recipe, checked by `sbatch --test-only`, or submit it.

    Takes the recipe's own fields too: --data, --output, --epochs, ...
    """

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    nodes: int = 1
    gpus_per_node: int = 8  # 0: none
    processes_per_node: int = 0  # 0: as many as GPUs, one at least
    time: str = "24:00:00"  # then the run saves, and the job queues itself again
    partition: str = ""  # empty: the cluster's default
    config: str = "ddp_multinode"  # of launch/configs
    submit: tyro.conf.FlagCreatePairsOff[bool] = False  # instead of printing

    def __call__(self, arguments: list[str]) -> int:
        """Check the request as the job would, then print or submit the script."""
        from launch.recipes import recipe_file
        from launch.slurm import Resources, job_script, sbatch
        from pipeline.config import problems
        from pipeline.request import check, parse

        path, recipe = recipe_file(self.recipe)
        request = parse(recipe, arguments)
        found, dataset = check(request)
        processes = self.processes_per_node or max(1, self.gpus_per_node)
        engine = engine_named(self.config, found)
        found += [p for p in problems(request.recipe, dataset, self.nodes * processes, engine) if p not in found]
        if found:
            raise BadRequest(found)
        resources = Resources(
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            processes_per_node=processes,
            time=self.time,
            partition=self.partition,
            config=self.config,
        )
        script = job_script(path.resolve(), arguments, resources)
        if self.submit:
            print(sbatch(script))
        else:
            print(script, end="")
            print(sbatch(script, "--test-only"), file=sys.stderr)
        return 0


@dataclass(frozen=True, kw_only=True)
class BenchLoader:
    """Views/s of the loader alone, against webdataset with timm's transforms on the same tars."""

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    json: Json = False

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds and their ratio."""
        from launch.bench import bench_loader

        return tell([bench_loader(*to_bench(self.recipe, arguments))], as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class BenchStep:
    """Images/s of steps on one batch, with each setting of --compute and in both precisions."""

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    json: Json = False

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds and their ratios."""
        from launch.bench import bench_step

        return tell([bench_step(to_bench(self.recipe, arguments)[0])], as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class BenchRecipe:
    """Images/s of the training loop from shards: against a bare loop (bf16), and against timm's training (fp32)."""

    recipe: tyro.conf.Positional[str]
    """Name or file of a recipe"""
    loader_cores: int = 0  # cores that loader workers have for themselves, as beside a GPU; 0: all share all
    json: Json = False

    def __call__(self, arguments: list[str]) -> int:
        """Print the speeds and their ratios."""
        from launch.bench import ALL_CORES, bench_recipe

        if not 0 <= self.loader_cores < len(ALL_CORES):
            raise BadRequest([f"--loader-cores {self.loader_cores}: of {len(ALL_CORES)} cores, one at least computes."])
        return tell(bench_recipe(*to_bench(self.recipe, arguments), self.loader_cores), as_json=self.json)


Bench = (
    Annotated[BenchLoader, tyro.conf.subcommand("loader")]
    | Annotated[BenchStep, tyro.conf.subcommand("step")]
    | Annotated[BenchRecipe, tyro.conf.subcommand("recipe")]
)


@dataclass(frozen=True)
class BenchVerb:
    """Measure speeds on this machine, side by side: loader, step, recipe.

    Takes the recipe's own fields too: --data, --batch, ...; without --data the images are made up.
    """

    verb: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Bench]]

    def __call__(self, arguments: list[str]) -> int:
        """Do the chosen benchmark."""
        return self.verb(arguments)


Shards = (
    Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[MakeIndex, tyro.conf.subcommand("index")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


@dataclass(frozen=True)
class ShardsVerb:
    """Build, index, verify and show shards."""

    verb: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Shards]]

    def __call__(self) -> int:
        """Do the chosen verb."""
        return self.verb()


Verb = (
    Annotated[ShardsVerb, tyro.conf.subcommand("shards")]
    | Annotated[ShowOrder, tyro.conf.subcommand("order")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Teach, tyro.conf.subcommand("teach")]
    | Annotated[Ladder, tyro.conf.subcommand("ladder")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[MakeDrill, tyro.conf.subcommand("drill")]
    | Annotated[MakePlan, tyro.conf.subcommand("plan")]
    | Annotated[Slurm, tyro.conf.subcommand("slurm")]
    | Annotated[BenchVerb, tyro.conf.subcommand("bench")]
)
OfRecipe = Teach | Ladder | Doctor | MakeDrill | MakePlan | Slurm | BenchVerb  # a recipe's own fields come after theirs


def to_bench(name: str, arguments: list[str]) -> tuple[Recipe, Dataset | None]:
    """Return what a benchmark runs.  Raises BadRequest with all that is wrong with it."""
    from launch.bench import alone
    from launch.recipes import load_recipe
    from pipeline.request import check, parse

    request = parse(load_recipe(name), arguments)
    request = replace(request, recipe=alone(request.recipe, "fp32"), dry_run=True)
    found, dataset = check(request)
    if found:
        raise BadRequest(found)
    return request.recipe, dataset


def tell(results: list["Measured"], *, as_json: bool) -> int:
    """Print measurements, as tables or as one JSON list."""
    from launch.bench import show

    if as_json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        for result in results:
            show(result)
    return 0


def engine_named(config: str, found: list[str]) -> EngineName:
    """Return the engine of one of launch/configs; add to what was found wrong if there is no such one."""
    from pipeline.hosting import engine_of_config

    configs = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.yaml"))}
    if config in configs:
        return engine_of_config(configs[config])
    found.append(f"--config {config}: not one of {', '.join(configs)}.")
    return "ddp"


def show(dataset: Dataset) -> None:
    """Print a data set as a table."""
    table = Table(title=f"{dataset.folder}: {len(dataset.classes)} classes")
    for column in ("split", "samples", "shards", "MB", "smallest class", "largest class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, index in dataset.splits.items():
        counts = [int((index.rows["label"] == label).sum()) for label in range(len(dataset.classes))]
        megabytes = sum(shard.bytes for shard in index.shards) / 1e6
        row = (
            f"{len(index):,}",
            str(len(index.shards)),
            f"{megabytes:.1f}",
            str(min(counts)),
            str(max(counts)),
        )
        table.add_row(name, *row)
    Console().print(table)


def main() -> None:
    """Entry point of `vitrail`."""
    try:
        about = "DeiT-style training of vision transformers."
        verb, others = tyro.cli(Verb, prog="vitrail", description=about, return_unknown_args=True)
        if isinstance(verb, OfRecipe):
            code = verb(others)
        elif others:
            raise BadRequest([f"{' '.join(others)}: not known; see vitrail --help."])
        else:
            code = verb()
    except BadRequest as error:
        code = 2
        print("\n".join(f"vitrail: {problem}" for problem in error.problems), file=sys.stderr)
    except (VitrailError, OSError) as error:
        code = 1
        print(f"vitrail: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("vitrail: stopped; the same command goes on where it was.", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
