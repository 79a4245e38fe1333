"""Every claim of `claims.py`, run here: `make reproduce`, which writes docs/reproduction.md.

Results are kept as they come, in docs/reproduction.json: a row whose command is unchanged is not run again, and a
stopped run goes on, so the whole may be spread over days and machines. Without that file it begins from nothing. Runs
go beside each other, each on cores of its own.
"""

import argparse
import ast
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
from typing import Any, Final, TypedDict

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.folder import RunFolder
from shards.files import read_json, read_json_lines, write_json
from shards.parallel import allowed_cores, keep_to
from tests.bench.claims import SEEDS, TABLES, AtLeast, Claim, Figure, Flat, Row, Shortfall, Table

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "docs" / "reproduction.json"
HALVES: Final = {"first": "airplane automobile bird cat deer", "second": "dog frog horse ship truck"}


class Result(TypedDict):
    """What is kept of a run; accuracies are of the test split, in per cent."""

    top1: float
    top1_ema: float | None
    after: dict[str, float]  # top-1 by epochs done, where it was evaluated on the way
    trained_parameters: int
    minutes: float
    precision: str
    cores: int
    commit: str | None


Results = dict[str, dict[str, Result]]  # by command and seed


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", required=True, help="a source for `vitrail shards build`, with folders as classes")
    parser.add_argument("--flowers", required=True, help="another: flowers12.zip, or class folders of your own")
    parser.add_argument("--folder", type=Path, default=ROOT / "reproduction")
    parser.add_argument("--jobs", type=int, default=len(allowed_cores()), help="runs beside each other")
    parser.add_argument(
        "--tables", nargs="+", metavar="TITLE", choices=[table.title for table in TABLES], help="these tables alone"
    )
    options = parser.parse_args()
    sources = dict.fromkeys(("cifar10", *HALVES), options.cifar10) | {"flowers": options.flowers, "digits": "digits"}
    for name, source in sources.items():
        if not (options.folder / name / "dataset.json").exists():
            classes = ["--classes", *HALVES[name].split()] if name in HALVES else []
            build = [str(Path(sys.executable).parent / "vitrail"), "shards", "build", source]
            subprocess.run([*build, str(options.folder / name), *classes], cwd=ROOT, check=True)
    run_all(tasks(options.folder, options.tables), options.jobs)
    write_page()


@dataclass(frozen=True)
class Task:
    """A run of a row."""

    row: Row
    seed: int
    folder: Path
    command: tuple[str, ...]
    needs: frozenset[str]  # folders of other runs, which its flags name


def tasks(folder: Path, tables: list[str] | None = None) -> list[Task]:
    """Return the runs of all rows, or of some tables, in order; one may need folders that those before it make."""
    found = []
    for row, seed in runs(tables):
        needs = frozenset(name for _, name, _, _ in string.Formatter().parse(row.flags) if name)
        flags = row.flags.format_map({name: folder / name for name in needs})
        own = output(folder, row.name, seed)
        command = (sys.executable, f"recipes/{row.recipe}.py", *shlex.split(flags), "--seed", str(seed))
        found.append(
            Task(
                row=row,
                seed=seed,
                folder=own,
                command=(*command, "--data", str(folder / row.data), "--output", str(own)),
                needs=needs,
            )
        )
    return found


def missing(wanted: list[Task]) -> list[Task]:
    """Return those of some tasks that have no result, and those whose folders these need and are not there."""
    needed: set[str] = set()
    found = []
    for task in reversed(wanted):
        finished = RunFolder(task.folder).summary.exists()
        if not finished and (task.folder.name in needed or result(task.row, task.seed) is None):
            needed |= task.needs
            found.append(task)
    return found[::-1]


def run_all(wanted: list[Task], jobs: int) -> None:
    """Run what is missing, `jobs` beside each other, each as soon as what it needs is made; keep the results."""
    cores = sorted(allowed_cores())
    numbers = count()

    def on_own_cores() -> None:
        keep_to(cores[next(numbers) % jobs :: jobs])

    for task in wanted:
        if RunFolder(task.folder).summary.exists() and result(task.row, task.seed) is None:
            keep(task)  # it was killed before it did
    unfinished = missing(wanted)
    running: dict[Future[None], Task] = {}
    with ThreadPoolExecutor(jobs, initializer=on_own_cores) as pool:
        while unfinished:
            unmade: set[str] = set()
            for task in unfinished:
                if len(running) < jobs and task not in running.values() and not task.needs & unmade:
                    running[pool.submit(call, task)] = task
                unmade.add(task.folder.name)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for run in done:
                task = running.pop(run)
                unfinished.remove(task)
                run.result()
                keep(task)
                write_page()


def call(task: Task) -> None:
    """Carry out a run, and keep what it says."""
    print(f"+ {shlex.join(task.command)}\n", end="", flush=True)
    with task.folder.with_suffix(".log").open("a") as log:
        subprocess.run(task.command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)


def keep(task: Task) -> None:
    """Add the result of a finished run to those that are kept."""
    folder = RunFolder(task.folder)
    summary = read_json(folder.summary, dict[str, Any])
    session = read_json_lines(folder.sessions, dict[str, Any]).good[-1]
    known = results()
    known.setdefault(said(task.row), {})[str(task.seed)] = Result(
        top1=round(100 * summary["top1"], 2),
        top1_ema=None if summary["top1_ema"] is None else round(100 * summary["top1_ema"], 2),
        after={
            f"{line['epoch']:.0f}": round(100 * line["top1"], 2)
            for line in folder.logged("eval")
            if line["weights"] == "raw"
        },
        trained_parameters=summary["trained_parameters"],
        minutes=round(summary["wall_seconds"] / 60, 1),
        precision=session["precision"],
        cores=session["machine"]["cores"],
        commit=session["git_commit"],
    )
    commands = [said(row) for row, _ in runs()]  # a row that is gone takes its results with it
    write_json(RESULTS, {command: dict(sorted(known[command].items())) for command in commands if command in known})


def results() -> Results:
    """Return the results that are kept."""
    return read_json(RESULTS, Results) if RESULTS.exists() else {}


def result(row: Row, seed: int) -> Result | None:
    """Return what is kept of a run, None where it has not been run."""
    return results().get(said(row), {}).get(str(seed))


def said(row: Row) -> str:
    """Return a row's command as its page has it."""
    return f"recipes/{row.recipe}.py {row.flags}"


def output(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{seed}"


def runs(tables: list[str] | None = None) -> list[tuple[Row, int]]:
    """Return every row, or those of some tables, with each of its seeds."""
    within = [table for table in TABLES if tables is None or table.title in tables]
    rows = [row for table in within for row in table.rows if isinstance(row, Row)]
    return [(row, seed) for row in rows for seed in row.seeds]


HEAD = """# Reproduction

Written by `make reproduce` from docs/reproduction.json, where results are kept as they come. Top-1 on the test split in
per cent, of every image, raw weights: mean and standard deviation over the seeds. Trained parameters are those of the
last phase. Minutes are of all seeds together, each run on a core of its own; machines are shared, so they say only the
order of magnitude. Precision is the recipes' `auto`: bf16 where the processor computes in it. A row says how many of
its seeds have been run; `make reproduce` goes on with the others.

A claim *holds* if the difference of the means is more than twice its standard error, is *contradicted* if it is that
much the other way, and is else *not decided* here; a published figure holds if it lies within two standard deviations
of our runs."""


def write_page() -> None:
    """Write docs/reproduction.md from the results that are kept."""
    tables = "\n\n".join(report(table) for table in TABLES)
    (ROOT / "docs" / "reproduction.md").write_text(f"{HEAD}\n\n{tables}\n\n{not_run()}\n")


def report(table: Table) -> str:
    """Return a table, the verdicts on its claims, and its commands."""
    scores = scores_of()
    head = ["row", *(f"after {epochs}" for epochs in table.after), "at the end", "seeds", "trained", "minutes", "in"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table.rows:
        columns = [spread(scores.get(f"{row.name}@{epochs}")) for epochs in table.after]
        cost = ["", "", "", ""]
        if isinstance(row, Row):
            kept = [of_seed for seed in row.seeds if (of_seed := result(row, seed))]
            trained = f"{kept[0]['trained_parameters']:,}" if kept else ""
            minutes = f"{sum(of_seed['minutes'] for of_seed in kept):.1f}"
            precisions = ", ".join(sorted({of_seed["precision"] for of_seed in kept}))
            cost = [f"{len(kept)} of {len(row.seeds)}", trained, minutes, precisions]
        lines.append("| " + " | ".join([row.name, *columns, spread(scores.get(row.name)), *cost]) + " |")
        if averaged := scores.get(f"{row.name} EMA"):
            lines.append("| " + " | ".join([f"{row.name}, EMA", *columns, spread(averaged), "", "", "", ""]) + " |")
    if table.claims:
        lines += ["", "| source | claim | difference here, points | verdict |", "|---|---|---|---|"]
    for claim in table.claims:
        judged = judge(claim, scores)
        verdict = f"{judged[0]:+.2f} ± {judged[1]:.2f} | {judged[2]}" if judged else " | not run"
        lines.append(f"| {claim.source} | {claim.says} | {verdict} |")
    commands = [f"{row.name}: {said(row)}" for row in table.rows if isinstance(row, Row)]
    minutes = sum(of_seed["minutes"] for row, seed in runs([table.title]) if (of_seed := result(row, seed)))
    lines += ["", f"Together {minutes / 60:.1f} hours of a core."]
    return "\n".join([f"## {table.title}\n\n{table.text}\n", *lines, "\n```", *commands, "```"])


def scores_of() -> dict[str, list[float]]:
    """Return the top-1 of rows in per cent, by row, `row@epochs` and `row EMA`: one number a seed that has been run."""
    scores: dict[str, list[float]] = {}
    for row in (row for table in TABLES for row in table.rows):
        if isinstance(row, Shortfall):
            by_seed = list(zip(*(scores.get(name, []) for name in row.of), strict=False))
            if by_seed:
                scores[row.name] = [max(of_seed) - statistics.mean(of_seed) for of_seed in by_seed]
            continue
        for of_seed in (found for seed in row.seeds if (found := result(row, seed))):
            scores.setdefault(row.name, []).append(of_seed["top1"])
            if of_seed["top1_ema"] is not None:
                scores.setdefault(f"{row.name} EMA", []).append(of_seed["top1_ema"])
            for epochs, top1 in of_seed["after"].items():
                scores.setdefault(f"{row.name}@{epochs}", []).append(top1)
    return scores


def spread(values: list[float] | None) -> str:
    """Return mean and standard deviation as they are printed."""
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def judge(claim: Claim | Figure | Flat | AtLeast, scores: dict[str, list[float]]) -> tuple[float, float, str] | None:
    """Return the difference, its standard error (of a published figure: our standard deviation), and the verdict.

    None where some of its rows have not been run with all seeds.
    """
    if isinstance(claim, AtLeast):
        reached = scores.get(claim.row)
        return reached and (reached[0] - claim.bound, 0.0, "holds" if reached[0] >= claim.bound else "contradicted")
    if isinstance(claim, Flat):
        compared = Claim(claim.source, claim.says, (claim.row,), (f"{claim.row}@{claim.since}",))
        judged = judge(compared, scores)
        return judged and (judged[0], judged[1], "holds" if judged[0] < 1 else "contradicted")
    names = (claim.row,) if isinstance(claim, Figure) else (*claim.better, *claim.worse)
    if any(len(scores.get(name, ())) < len(SEEDS) for name in names):
        return None
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
