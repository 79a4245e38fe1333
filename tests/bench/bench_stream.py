"""Streams beside local files: seconds to the first batch, and the share of a run's time that is spent waiting for data.

    python tests/bench/bench_stream.py [TARS]    # a folder of tars with an _info.json; without it, made-up photographs

The tars lie behind an HTTP server on loopback, a process of its own, which answers after 50 ms and sends 200 MB/s a
connection. Local files and streams are measured in turn; figures are medians.
"""

import json
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.config import Recipe
from pipeline.data.batch import TrainingBatches
from pipeline.data.loader import StepSampler, load
from pipeline.folder import RunFolder
from pipeline.request import Request
from pipeline.run import carry_out
from recipes.deit_tiny import RECIPE
from shards.open import Opener, Reading
from shards.synthetic import make_dataset
from tests.http_server import serving

LATENCY: Final = 0.05  # seconds
BANDWIDTH: Final = 200e6  # bytes a second
ROUNDS: Final = 5
RUNS: Final = 5
STEPS: Final = 12
FILLED: Final = 4  # steps after which the first windows are there


def serve(folder: Path, answer: Any) -> None:
    """Serve a folder until the process is ended, and say where."""
    with serving(folder) as server:
        server.latency, server.bandwidth = LATENCY, BANDWIDTH
        answer.send(server.url)
        time.sleep(10**6)


@contextmanager
def served(folder: Path) -> Any:
    """Give the URL of a folder behind a server that is a process of its own."""
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()


def first_batch(recipe: Recipe, data: str, cache: Path, share: float) -> float:
    """Return the seconds from the name of the data to a batch of every virtual rank, at a share of an epoch."""
    started = time.perf_counter()
    index = Opener(Reading(cache=str(cache)), lambda text: None, 1).open(data).splits["train"]
    batches = TrainingBatches(recipe, index)
    step = int(share * batches.order.steps_per_epoch)
    loader = iter(load(batches, StepSampler([step], range(recipe.virtual_ranks)), workers=1, pin_memory=False))
    for _ in range(recipe.virtual_ranks):
        next(loader)
    seconds = time.perf_counter() - started
    loader.close()
    return seconds


def data_wait(recipe: Recipe, data: str, scratch: Path) -> float:
    """Return the share of the time that a run waits for data, once its first windows are there."""
    recipe = replace(recipe, data=replace(recipe.data, cache=str(scratch / "cache")))
    request = Request(recipe=recipe, data=data, output=str(scratch / "run"), max_steps=STEPS)
    assert carry_out(request) == 0
    lines = [json.loads(line) for line in RunFolder(scratch / "run").metrics.read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if line["kind"] == "train" and line["step"] > FILLED]
    return statistics.mean(waits)


def main() -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as made:
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
        else:
            make_dataset(Path(made), classes=10, size=256, samples={"train": 500}, samples_per_shard=50)
            folder = Path(made)
        reading = Reading(cache=str(Path(made) / "cache"))
        classes = len(Opener(reading, lambda text: None, 1).open(str(folder)).classes)
        small = replace(
            RECIPE,
            batch=32,
            virtual_ranks=2,
            data=replace(RECIPE.data, classes=classes, workers=1, window=128, repeats=1),
            eval=replace(RECIPE.eval, every_epochs=0),
            log=replace(RECIPE.log, every_steps=1),
            checkpoint=replace(RECIPE.checkpoint, every_minutes=0, every_steps=0),
        )
        with served(folder) as url:
            print(f"medians of {ROUNDS}, seconds to the first batch of 2 virtual ranks of 16 images")
            times: dict[str, list[float]] = {}
            for number in range(ROUNDS):
                for share in (0.0, 0.9):
                    for name, data in (("local", str(folder)), ("stream", url)):
                        cache = Path(made) / ("local" if name == "local" else f"{number} {share}")
                        seconds = first_batch(small, data, cache, share)
                        times.setdefault(f"{name}, at {share:.0%} of an epoch", []).append(seconds)
            for name, found in times.items():
                print(f"{name:32} {statistics.median(found):.2f} s")
            waits: dict[str, list[float]] = {}
            for _ in range(RUNS):
                for name, data in (("local", str(folder)), ("stream", url)):
                    with tempfile.TemporaryDirectory() as scratch:
                        waits.setdefault(name, []).append(data_wait(small, data, Path(scratch)))
            for name, found in waits.items():
                print(f"data wait, {name:21} {statistics.median(found):.1%} (n = {RUNS})")


if __name__ == "__main__":
    main()
