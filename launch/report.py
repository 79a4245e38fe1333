"""`vitrail report`: one HTML page of one run or several, made of the files in their folders alone.

The page holds all it shows: inline SVG, pictures as data, no script, nothing from the network. jinja2 escapes whatever
comes from a run; the page's own policy forbids scripts as well.
"""

import base64
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import tyro
from jinja2 import Environment, PackageLoader

from launch import chart
from launch.chart import Chart, Series
from launch.recipe_files import load_recipe, recipe_names
from launch.verb import Verb
from pipeline.config import FIELDS
from pipeline.fields import differing, flatten
from pipeline.folder import (
    Beginning,
    FindingsHead,
    MetricsLine,
    QuarantineLine,
    RunFolder,
    SessionLine,
)
from shards.errors import BadRequest, DamagedFile, Problem, harmless
from shards.files import atomic_write, read_json, read_json_lines

PNG: Final = b"\x89PNG\r\n\x1a\n"  # how such a file begins
HEATED: Final = 40  # classes of which the whole confusion is drawn, at most
NAMED: Final = 20  # of many unusable samples, confused pairs, weakest classes
STARVED: Final = 0.2  # share of the time spent waiting for data from which on the loader is what limits
PARTS: Final = {  # of a step, in words
    "wait": "wait for the loader",
    "input": "input: copy, erase, mix, ask the teacher",
    "other": "other: log, exchange",
    "rest": "all else",
}
CURVES: Final = {  # names in the lines of training, and what they are
    "loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "images_per_second": "images/s",
    "data_wait": "share of the time spent waiting for data",
    "agreement": "agreement with the teacher",
    "memory_gib": "memory of process 0, GiB",
}
SCORES: Final = {"top1": "top-1", "top5": "top-5", "loss": "held-out loss"}
URL: Final = re.compile(r"(\w+://)(?:[^/\s'@]*@)?([^\s'?]*)(?:\?[^\s']*)?")  # who asks, the place, a signed query


class Difference(NamedTuple):
    """A field of the recipe that is not as in the recipe's file."""

    name: str
    base: str
    value: str
    role: str


class Part(NamedTuple):
    """A part of a step, and its share of the time."""

    name: str
    share: float


class Pair(NamedTuple):
    """How many samples of a class were taken for another."""

    label: str
    answer: str
    samples: int
    share: float  # of the class


class Picture(NamedTuple):
    """A picture as a data URI, and what it shows."""

    data: str
    caption: str


@dataclass(frozen=True)
class Found:
    """What the last evaluation found, ready to be shown."""

    head: FindingsHead
    pairs: list[Pair]  # the most confused
    heat: list[tuple[str, list[tuple[int, float]]]]  # of each class: counts and shares by answer; empty for many
    weakest: list[tuple[str, float, int]]  # classes by the share of right answers, and how many samples
    mistakes: list[Picture]
    attention: list[list[Picture]]  # of each image: itself, and of each token


@dataclass(frozen=True)
class Shown:
    """A run, ready to be shown."""

    name: str
    folder: str
    recipe: dict[str, Any]
    base: str  # the recipe that it is compared with; empty where that is the fields' defaults
    differences: list[Difference]
    summary: dict[str, Any]
    data: dict[str, Any]
    sessions: list[SessionLine]
    events: list[tuple[int, str]]
    unusable: list[QuarantineLine]
    parts: list[Part]
    limit: str
    found: Found | None
    command: str
    git_commit: str | None
    versions: dict[str, str]
    damaged: list[str]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Report(Verb):
    """Write one self-contained HTML page about one run or several: curves, recipe, data, speed, mistakes.

    Example: vitrail report RUN --output RUN.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, finished or not; several stand side by side"""
    output: Path  # page to write: a .html, if no other ending is given

    def __call__(self) -> int:
        """Write the page."""
        path = self.output if self.output.suffix else Path(f"{self.output}.html")
        found = list(problems(self.runs, self.output, path))
        shown = []
        for folder in self.runs:
            try:
                shown.append(show(RunFolder(folder)))
            except FileNotFoundError:
                found.append(
                    Problem("runs", f"{folder}: no run here, it has no recipe.json. Name the folder of a run.")
                )
            except DamagedFile as error:
                found.append(Problem("runs", f"{error} Start the run's command again: it sets the file aside."))
            except OSError as error:
                found.append(Problem("runs", f"{folder}: cannot be read ({error.strerror})."))
        if found:
            raise BadRequest(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(page(shown).encode())
        print(harmless(path))
        return 0


VERB: Final = Report


def problems(runs: Sequence[Path], output: Path, path: Path) -> Iterator[Problem]:
    """Yield what is wrong with the names on the command line."""
    if not runs:
        yield Problem("runs", "which run? Name the folder of one, or of several.")
    if output.name in ("", "..") or output.is_dir() or path.is_dir():
        yield Problem("output", f"--output {output}: a folder; name a file in it.")
    elif path.suffix.lower() not in (".html", ".htm"):
        yield Problem("output", f"--output {output}: the page is HTML; name a .html.")


def page(runs: Sequence[Shown]) -> str:
    """Return the page of runs."""
    environment = Environment(
        loader=PackageLoader("launch", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["harmless"] = harmless
    return environment.get_template("report.html.j2").render(
        runs=runs,
        charts=charts(runs),
        apart=apart(runs),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        size=(chart.WIDTH, chart.HEIGHT, chart.LEFT, chart.RIGHT, chart.TOP, chart.BOTTOM),
    )


def show(folder: RunFolder) -> Shown:
    """Return what a run's folder says.

    Raises FileNotFoundError where it is none of a run, DamagedFile or OSError for a file that cannot be read.
    """
    beginning = read_json(folder.recipe, Beginning)
    recipe = flatten(beginning["recipe"])
    metrics = read_json_lines(folder.metrics, MetricsLine)
    sessions = read_json_lines(folder.sessions, SessionLine)
    unusable = read_json_lines(folder.quarantine, QuarantineLine)
    train: list[dict[str, Any]] = [{**line} for line in metrics.good if line["kind"] == "train"]
    data = beginning.get("data", {})
    base, differences = compared(recipe)
    parts = parts_of(train)
    return Shown(
        name=folder.path.resolve().name,
        folder=str(folder),
        recipe=recipe,
        base=base,
        differences=differences,
        summary=_read(folder.summary, dict),
        data=data | {"place": public(str(data.get("place", "")))} if data else {},
        sessions=sessions.good,
        events=[(line["step"], line["event"]) for line in metrics.good if "event" in line],
        unusable=unusable.good,
        parts=parts,
        limit=limit(parts),
        found=found_in(folder),
        command=command(sessions.good),
        git_commit=beginning.get("git_commit"),
        versions=beginning.get("versions", {}),
        damaged=[
            f"{path.name}: {len(lines.damaged)} lines cannot be read, and are left out."
            for path, lines in ((folder.metrics, metrics), (folder.sessions, sessions), (folder.quarantine, unusable))
            if lines.damaged
        ],
        train=train,
        evaluations=[{**line} for line in metrics.good if line["kind"] == "eval" and "weights" in line],
    )


def _read(path: Path, form: Any) -> Any:
    """Return the value of a JSON file, an empty one where there is none yet."""
    try:
        return read_json(path, form)
    except FileNotFoundError:
        return {}


def compared(recipe: Mapping[str, Any]) -> tuple[str, list[Difference]]:
    """Return the recipe file that a recipe belongs to by its name, and what differs from it.

    Only Vitrail's own files are looked at, as reading one runs it; others are compared with the fields' defaults.
    """
    name = recipe.get("name")
    if name in recipe_names():
        base = flatten(load_recipe(str(name)))
    else:
        name = ""
        base = {field.name: list(field.default) if isinstance(field.default, tuple) else field.default
                for field in FIELDS.values()}  # fmt: skip
    resolved = ("model.mean", "model.std", "name")  # worked out where the recipe leaves them open, or said above
    return str(name), [
        Difference(
            field,
            value_of(base.get(field)),
            value_of(recipe.get(field)),
            FIELDS[field].role.value if field in FIELDS else "",
        )
        for field in differing(base, recipe)
        if not (field in resolved and base.get(field) is None)
    ]


def value_of(value: Any) -> str:
    """Return a field's value in words."""
    if isinstance(value, list | tuple):
        return " ".join(map(value_of, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value in (None, "") else str(value)


def apart(runs: Sequence[Shown]) -> list[tuple[str, list[str]]]:
    """Return the fields in which runs differ from each other, with the value of each run."""
    if len(runs) < 2:
        return []
    names = sorted({name for run in runs for name in differing(runs[0].recipe, run.recipe)} - {"name"})
    return [(name, [value_of(run.recipe.get(name)) for run in runs]) for name in names]


def charts(runs: Sequence[Shown]) -> list[Chart]:
    """Return the charts of runs, all runs in each: scores by weights, then what training logs."""
    drawn = []
    for name, title in SCORES.items():
        series = [
            Series(
                f"{run.name} {weights}",
                number,
                [
                    (line["epoch"], line[name])
                    for line in run.evaluations
                    if line["weights"] == weights and name in line
                ],
                dashed=weights == "raw",
            )
            for number, run in enumerate(runs)
            for weights in dict.fromkeys(line["weights"] for line in run.evaluations)
        ]
        drawn.append(chart.chart(title, series))
    for name, title in CURVES.items():
        drawn.append(
            chart.chart(
                title,
                [
                    Series(run.name, number, [(line["epoch"], line[name]) for line in run.train if name in line])
                    for number, run in enumerate(runs)
                ],
            )
        )
    return [one for one in drawn if one]


def parts_of(train: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return the shares of a step's parts, over all that was logged; of older runs the wait for data alone."""
    timed = [line["times"] for line in train if line.get("times")]
    if timed:
        sums = {name: sum(times.get(name, 0.0) for times in timed) for name in timed[0]}
        whole = sum(sums.values()) or 1.0
        return [Part(PARTS.get(name, name), seconds / whole) for name, seconds in sums.items()]
    waits = [line["data_wait"] for line in train if "data_wait" in line]
    if not waits:
        return []
    wait = min(max(sum(waits) / len(waits), 0.0), 1.0)
    return [Part(PARTS["wait"], wait), Part(PARTS["rest"], 1 - wait)]


def limit(parts: Sequence[Part]) -> str:
    """Return what limited a run's speed, in words; empty where nothing was logged."""
    shares = {part.name: part.share for part in parts}
    if not shares:
        return ""
    wait = shares.get(PARTS["wait"], 0.0)
    if wait >= STARVED:
        return f"The loader: {wait:.0%} of the time the model waited for data. More --data.workers may help."
    largest = max(parts, key=lambda part: part.share)
    return f"The model: the wait for data took {wait:.1%}; the largest part of a step is {largest.name}."


def command(sessions: Sequence[SessionLine]) -> str:
    """Return the last command of a run, without what a URL says of who asks; empty where none was recorded."""
    if not sessions or not (words := sessions[-1].get("command")):
        return ""
    launch = ["accelerate", "launch", "--num_processes", str(sessions[-1].get("processes", 1))]
    return public(shlex.join([*launch, *words]))


def public(text: str) -> str:
    """Return a text whose URLs say no more than a place: others read a report."""
    return URL.sub(r"\1\2", text)


def found_in(folder: RunFolder) -> Found | None:
    """Return what the last evaluation of a run found, None where there was none."""
    try:
        head = read_json(folder.findings_head, FindingsHead)
    except FileNotFoundError:
        return None

    def name(number: int) -> str:
        return head["classes"][number] if 0 <= number < len(head["classes"]) else str(number)

    total: Counter[int] = Counter()
    right: Counter[int] = Counter()
    counts: dict[tuple[int, int], int] = {}
    for label, answer, count in head["confusion"]:
        total[label] += count
        counts[label, answer] = count
        if label == answer:
            right[label] += count
    wrong = sorted(((count, pair) for pair, count in counts.items() if pair[0] != pair[1]), reverse=True)
    shown = sorted({number for pair in counts for number in pair})
    heat = []
    if len(shown) <= HEATED:
        heat = [
            (name(label), [(counts.get((label, answer), 0), counts.get((label, answer), 0) / (total[label] or 1))
                           for answer in shown])
            for label in shown
        ]  # fmt: skip
    weakest = sorted(total, key=lambda label: (right[label] / total[label], label))
    return Found(
        head=head,
        pairs=[Pair(name(label), name(answer), count, count / total[label])
               for count, (label, answer) in wrong[:NAMED]],
        heat=heat,
        weakest=[(name(label), right[label] / total[label], total[label]) for label in weakest[:NAMED]],
        mistakes=list(_pictures(
            folder, "mistake",
            [f"{name(one['answer'])} {one['probability']:.0%}, is {name(one['label'])} ({one['key']})"
             for one in head["mistakes"]],
        )),
        attention=_attention(folder, head),
    )  # fmt: skip


def _attention(folder: RunFolder, head: FindingsHead) -> list[list[Picture]]:
    if not head["tokens"]:
        return []
    columns = [_pictures(folder, "image", head["looked_at"])]
    columns += [_pictures(folder, token, [f"{token} token"] * len(head["looked_at"]))
                for token in head["tokens"] if token.isalpha()]  # fmt: skip
    return [list(row) for row in zip(*columns, strict=False)]


def _pictures(folder: RunFolder, kind: str, captions: Iterable[str]) -> Iterator[Picture]:
    """Yield the pictures of a kind with their captions; one that is no PNG is an empty one."""
    for number, caption in enumerate(captions):
        try:
            content = folder.finding(kind, number).read_bytes()
        except FileNotFoundError:
            content = b""
        data = base64.b64encode(content).decode() if content.startswith(PNG) else ""
        yield Picture(f"data:image/png;base64,{data}" if data else "", caption)
