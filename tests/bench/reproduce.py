"""Every claim of the papers that fits two cores, run here: `make reproduce`, which writes docs/reproduction.md.

Rows are runs of recipes by the commands in the table, three seeds each. A finished run is not run again, a stopped one
goes on, so the whole may be stopped and started as you like.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """Runs of a recipe; `{name}` in the flags is the folder of another run, or of a store."""

    name: str
    recipe: str
    flags: str
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Claim:
    """That one row is better than another."""

    source: str
    says: str
    better: str
    worse: str


@dataclass(frozen=True)
class Table:
    """Rows that are compared with each other."""

    title: str
    text: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]


SMALL = (
    "--model.patch-size 8 --model.depth 3 --model.drop-path 0 --data.repeats 1 --data.epoch images "
    "--augment.rand-ops 0 --augment.erase 0 --mix.prob 0.5 --optim.lr-batch 0 --optim.warmup-epochs 0.5 --ema.decay 0 "
    "--eval.every-epochs 0 --eval.batch 500 --batch 128 --virtual-ranks 1 --epochs 2"
)
PUBLISHED = "--distill.teacher resnet20_cifar --distill.checkpoint {resnet20}"
DISTILLATION = Table(
    title="Distillation",
    text="""CIFAR-10 at 32 px; a ViT of width 128, 3 blocks and patch 8 (17 or 18 tokens), two epochs of all 50,000
images, half of the batches mixed. The CNN teachers are ResNet-20: the published one, and one trained here for an
epoch, to be of like accuracy with a ViT teacher of width 192 and 6 blocks that was trained here for nine.""",
    rows=(
        Row("vit-teacher", "deit_cifar10", "--model.patch-size 8 --model.width 192 --model.heads 6 --data.repeats 1 "
            "--data.epoch images --augment.rand-ops 0 --augment.erase 0 --mix.prob 0 --optim.lr-batch 0 "
            "--ema.decay 0.999 --eval.every-epochs 2 --eval.batch 500 --batch 128 --virtual-ranks 1 --epochs 9", (0,)),
        Row("cnn-teacher", "teacher_cifar10", "--model.name resnet20_cifar --epochs 1 --optim.warmup-epochs 0.2", (0,)),
        Row("alone", "deit_cifar10", SMALL),
        Row("soft", "deit_cifar10", f"{SMALL} {PUBLISHED} --distill.no-token --distill.loss soft --distill.top 10 "
            "--distill.tau 3 --distill.weight 0.1 --distill.store {store-soft}"),
        Row("hard", "deit_cifar10", f"{SMALL} {PUBLISHED} --distill.no-token --distill.store {{store-hard}}"),
        Row("hard-token", "deit_cifar10_distilled", f"{SMALL} {PUBLISHED} --distill.store {{store-hard}}"),
        Row("of-vit", "deit_cifar10_distilled", f"{SMALL} --distill.teacher local-dir:{{vit-teacher-0}} "
            "--distill.store {store-vit}"),
        Row("of-cnn", "deit_cifar10_distilled", f"{SMALL} --distill.teacher local-dir:{{cnn-teacher-0}} "
            "--distill.store {store-cnn}"),
    ),
    claims=(
        Claim("DeiT, Table 3", "hard distillation is better than none", "hard", "alone"),
        Claim("DeiT, Table 3", "hard distillation is better than soft", "hard", "soft"),
        Claim("DeiT, Table 3", "soft distillation is better than none; the paper finds it is not", "soft", "alone"),
        Claim("DeiT, Table 3", "a distillation token adds a little to hard distillation", "hard-token", "hard"),
        Claim("DeiT, Table 2", "a CNN is a better teacher than a transformer of like accuracy", "of-cnn", "of-vit"),
    ),
)  # fmt: skip
TABLES = (DISTILLATION,)


class Places(dict[str, str]):
    """Where names in flags point to: under the folder, if nothing else is said."""

    def __init__(self, folder: Path, seed: int, **others: str) -> None:
        super().__init__(others)
        self._folder, self._seed = folder, seed

    def __missing__(self, name: str) -> str:
        return str(self._folder / (f"{name}-{self._seed}" if name.startswith("store-") else name))


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cifar10", required=True, help="a source for `vitrail shards build`: a zip, torchvision:CIFAR10"
    )
    parser.add_argument("--resnet20", required=True, help="resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("--folder", type=Path, default=ROOT / "reproduction")
    options = parser.parse_args()
    data = options.folder / "cifar10"
    if not (data / "dataset.json").exists():
        call(str(Path(sys.executable).parent / "vitrail"), "shards", "build", options.cifar10, str(data))
    for table in TABLES:
        for row in table.rows:
            for seed in row.seeds:
                output = options.folder / f"{row.name}-{seed}"
                if (output / "summary.json").exists():
                    continue
                places = Places(options.folder, seed, resnet20=options.resnet20)
                call(sys.executable, f"recipes/{row.recipe}.py", *shlex.split(row.flags.format_map(places)),
                     "--seed", str(seed), "--data", str(data), "--output", str(output))  # fmt: skip
    text = "\n\n".join(report(table, options.folder) for table in TABLES)
    (ROOT / "docs" / "reproduction.md").write_text(f"{HEAD}\n\n{text}\n")


def call(*command: str) -> None:
    """Run a command from the root of the repository, and show it."""
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


HEAD = """# Reproduction

Written by `make reproduce`; the runs behind it are in `reproduction/`. Top-1 on `cifar10/test` in per cent, 10,000 of
10,000 images, raw weights: mean and standard deviation over the seeds. Minutes are of all seeds together, as they came;
machines are shared, so they say only the order of magnitude. A claim *holds* if the difference of the means is more
than twice its standard error, is *contradicted* if it is that much the other way, and is else *not decided* here."""


def report(table: Table, folder: Path) -> str:
    """Return a table and the verdicts on its claims."""
    scores, lines = {}, []
    for row in table.rows:
        summaries = [json.loads((folder / f"{row.name}-{seed}" / "summary.json").read_text()) for seed in row.seeds]
        scores[row.name] = top1 = [100 * summary["top1"] for summary in summaries]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        minutes = sum(summary["wall_seconds"] for summary in summaries) / 60
        lines.append(f"| {row.name} | {statistics.mean(top1):.2f}{spread} | {len(top1)} | {minutes:.0f} |")
    verdicts = [
        f"| {claim.source} | {claim.says} | {difference:+.2f} ± {error:.2f} | {verdict} |"
        for claim in table.claims
        for difference, error, verdict in [judge(scores[claim.better], scores[claim.worse])]
    ]
    commands = [f"{row.name}: recipes/{row.recipe}.py {row.flags}" for row in table.rows]
    return "\n".join(
        [
            f"## {table.title}\n\n{table.text}\n",
            "| row | top-1, % | seeds | minutes |",
            "|---|---|---|---|",
            *lines,
            "",
            "| source | claim | difference here, points | verdict |",
            "|---|---|---|---|",
            *verdicts,
            "\n```",
            *commands,
            "```",
        ]
    )


def judge(better: list[float], worse: list[float]) -> tuple[float, float, str]:
    """Return the difference of two means, its standard error, and what it says of a claim."""
    difference = statistics.mean(better) - statistics.mean(worse)
    error = (statistics.variance(better) / len(better) + statistics.variance(worse) / len(worse)) ** 0.5
    verdict = "holds" if difference > 2 * error else "contradicted" if difference < -2 * error else "not decided"
    return difference, error, verdict


if __name__ == "__main__":
    main()
