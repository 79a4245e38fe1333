"""Every claim of `claims.py`, run here: `make reproduce`, which writes docs/reproduction.md.

A finished run is not run again, a stopped one goes on, so the whole may be stopped and started as you like. Runs go
beside each other, each on cores of its own.
"""

import argparse
import ast
import os
import re
import shlex
import statistics
import string
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.folder import RunFolder
from shards.files import read_json
from tests.bench.claims import TABLES, Claim, Figure, Row, Shortfall, Table

ROOT: Final = Path(__file__).parents[2]
HALVES: Final = {"first": "airplane automobile bird cat deer", "second": "dog frog horse ship truck"}


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", required=True, help="a source for `vitrail shards build`, with folders as classes")
    parser.add_argument("--flowers", required=True, help="another: flowers12.zip, or class folders of your own")
    parser.add_argument("--resnet20", required=True, help="resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("--folder", type=Path, default=ROOT / "reproduction")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs beside each other")
    options = parser.parse_args()
    sources = dict.fromkeys(("cifar10", *HALVES), options.cifar10) | {"flowers": options.flowers}
    for name, source in sources.items():
        if not (options.folder / name / "dataset.json").exists():
            classes = ["--classes", *HALVES[name].split()] if name in HALVES else []
            build = [str(Path(sys.executable).parent / "vitrail"), "shards", "build", source]
            subprocess.run([*build, str(options.folder / name), *classes], cwd=ROOT, check=True)
    run_all(options.folder, options.jobs, {"resnet20": str(Path(options.resnet20).resolve())})
    tables = "\n\n".join(report(table, options.folder) for table in TABLES)
    (ROOT / "docs" / "reproduction.md").write_text(f"{HEAD}\n\n{tables}\n\n{not_run()}\n")


@dataclass(frozen=True)
class Task:
    """A run of a row."""

    folder: Path
    command: tuple[str, ...]
    makes: frozenset[str]  # names of folders: its own, and stores that it fills
    needs: frozenset[str]  # those that its flags name


def tasks(folder: Path, places: dict[str, str]) -> list[Task]:
    """Return the runs of all rows, in order; one may need folders that those before it make."""
    found = []
    for row, seed in runs():
        named = [name for _, name, _, _ in string.Formatter().parse(row.flags) if name and name not in places]
        of_seed = {name: f"{name}-{seed}" if name.startswith("store-") else name for name in named}
        flags = row.flags.format_map(places | {name: str(folder / place) for name, place in of_seed.items()})
        own = output(folder, row.name, seed)
        command = (sys.executable, f"recipes/{row.recipe}.py", *shlex.split(flags), "--seed", str(seed))
        found.append(
            Task(
                folder=own,
                command=(*command, "--data", str(folder / row.data), "--output", str(own)),
                makes=frozenset({own.name, *(place for place in of_seed.values() if place.startswith("store-"))}),
                needs=frozenset(of_seed.values()),
            )
        )
    return found


def run_all(folder: Path, jobs: int, places: dict[str, str]) -> None:
    """Run all rows, `jobs` beside each other, each as soon as what it needs is made."""
    cores = sorted(os.sched_getaffinity(0))
    numbers = count()

    def on_own_cores() -> None:
        os.sched_setaffinity(0, cores[next(numbers) % jobs :: jobs])  # of this thread, and of what it starts

    unfinished = [task for task in tasks(folder, places) if not RunFolder(task.folder).summary.exists()]
    running: dict[Future[None], Task] = {}
    with ThreadPoolExecutor(jobs, initializer=on_own_cores) as pool:
        while unfinished:
            unmade: set[str] = set()
            for task in unfinished:
                if len(running) < jobs and task not in running.values() and not task.needs & unmade:
                    running[pool.submit(call, task)] = task
                unmade |= task.makes
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for run in done:
                unfinished.remove(running.pop(run))
                run.result()


def call(task: Task) -> None:
    """Carry out a run, and keep what it says."""
    print(f"+ {shlex.join(task.command)}\n", end="", flush=True)
    with task.folder.with_suffix(".log").open("a") as log:
        subprocess.run(task.command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)


def output(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{seed}"


def runs() -> list[tuple[Row, int]]:
    """Return every row with each of its seeds."""
    rows = [row for table in TABLES for row in table.rows if isinstance(row, Row)]
    return [(row, seed) for row in rows for seed in row.seeds]


HEAD = """# Reproduction

Written by `make reproduce`; the runs behind it are in `reproduction/`. Top-1 on the test split in per cent, of every
image, raw weights: mean and standard deviation over the seeds. Trained parameters are those of the last phase. Minutes
are of all seeds together, each run on a core of its own; machines are shared, so they say only the order of magnitude.
Precision is the recipes' `auto`: bf16 where the processor computes in it, as the one that wrote this page did.

A claim *holds* if the difference of the means is more than twice its standard error, is *contradicted* if it is that
much the other way, and is else *not decided* here; a published figure holds if it lies within two standard deviations
of our runs."""


def report(table: Table, folder: Path) -> str:
    """Return a table, the verdicts on its claims, and its commands."""
    scores = scores_of(folder)
    head = ["row", *(f"after {epochs}" for epochs in table.after), "at the end", "seeds", "trained", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table.rows:
        columns = [spread(scores.get(f"{row.name}@{epochs}")) for epochs in table.after]
        cost = ["", "", ""]
        if isinstance(row, Row):
            summaries = [read(folder, row, seed) for seed in row.seeds]
            minutes = sum(summary["wall_seconds"] for summary in summaries) / 60
            cost = [str(len(summaries)), f"{summaries[0]['trained_parameters']:,}", f"{minutes:.1f}"]
        lines.append("| " + " | ".join([row.name, *columns, spread(scores[row.name]), *cost]) + " |")
        if averaged := scores.get(f"{row.name} EMA"):
            lines.append("| " + " | ".join([f"{row.name}, EMA", *columns, spread(averaged), "", "", ""]) + " |")
    lines += ["", "| source | claim | difference here, points | verdict |", "|---|---|---|---|"]
    for claim in table.claims:
        difference, error, verdict = judge(claim, scores)
        lines.append(f"| {claim.source} | {claim.says} | {difference:+.2f} ± {error:.2f} | {verdict} |")
    commands = [f"{row.name}: recipes/{row.recipe}.py {row.flags}" for row in table.rows if isinstance(row, Row)]
    return "\n".join([f"## {table.title}\n\n{table.text}\n", *lines, "\n```", *commands, "```"])


def scores_of(folder: Path) -> dict[str, list[float]]:
    """Return the top-1 of all rows in per cent, by row, `row@epochs` and `row EMA`: one number a seed."""
    scores: dict[str, list[float]] = {}
    for row in (row for table in TABLES for row in table.rows):
        if isinstance(row, Shortfall):
            by_seed = zip(*(scores[name] for name in row.of), strict=True)
            scores[row.name] = [max(of_seed) - statistics.mean(of_seed) for of_seed in by_seed]
            continue
        for seed in row.seeds:
            summary = read(folder, row, seed)
            scores.setdefault(row.name, []).append(100 * summary["top1"])
            if summary["top1_ema"] is not None:
                scores.setdefault(f"{row.name} EMA", []).append(100 * summary["top1_ema"])
            for line in RunFolder(output(folder, row.name, seed)).logged("eval"):
                if line["weights"] == "raw":
                    scores.setdefault(f"{row.name}@{line['epoch']:.0f}", []).append(100 * line["top1"])
    return scores


def read(folder: Path, row: Row, seed: int) -> dict[str, Any]:
    """Return the summary of a run."""
    summary: dict[str, Any] = read_json(RunFolder(output(folder, row.name, seed)).summary, dict[str, Any])
    return summary


def spread(values: list[float] | None) -> str:
    """Return mean and standard deviation as they are printed."""
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def judge(claim: Claim | Figure, scores: dict[str, list[float]]) -> tuple[float, float, str]:
    """Return the difference, its standard error (of a published figure: our standard deviation), and the verdict."""
    if isinstance(claim, Figure):
        values = scores[claim.row]
        difference, deviation = statistics.mean(values) - claim.published, statistics.stdev(values)
        return difference, deviation, "holds" if abs(difference) <= 2 * deviation else "contradicted"
    terms = [(1, scores[name]) for name in claim.better] + [(-1, scores[name]) for name in claim.worse]
    difference = sum(sign * statistics.mean(values) for sign, values in terms)
    error = sum(statistics.variance(values) / len(values) for _, values in terms) ** 0.5
    verdict = "holds" if difference > 2 * error else "contradicted" if difference < -2 * error else "not decided"
    return difference, error, verdict


def not_run() -> str:
    """Return what was published for the recipes that no row runs, in the words of their own first lines."""
    ran = {row.recipe for row, _ in runs()}
    lines = ["## Published figures of the other recipes", "", "| recipe | figure |", "|---|---|"]
    for path in sorted((ROOT / "recipes").glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        said = " ".join(text.partition("\n\n")[2].partition("Run:")[0].split())
        if path.stem not in ran or "Not run here" in said:
            lines.append(f"| `{path.stem}` | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
