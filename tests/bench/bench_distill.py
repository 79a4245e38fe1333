"""What a teacher costs a step: deit_tiny without one, with stored outputs, and with RegNetY-16GF beside it.

One JSON line: seconds a step, medians of n rounds taken in turn in this run, and their ratios. The teacher has random
weights and the store random outputs, which takes the same time.
"""

import json
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.config import Recipe
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import FILLING, Job, resolve
from pipeline.micro_batch import MicroBatch
from pipeline.request import Request
from pipeline.teacher.store import Store
from pipeline.teacher.teacher import write_random_weights
from pipeline.train import build
from recipes import deit_tiny, deit_tiny_distilled
from shards.synthetic import make_dataset
from tests.bench.stopwatch import seconds_of

ROUNDS = 7
STEPS = 2  # in each round, after one round that is not counted
SMALL = {"batch": 16, "virtual_ranks": 2, "epochs": 10, "precision": "fp32"}


def main() -> None:
    hosting = Hosting(workers=1, cores=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = make_dataset(folder / "data", classes=1000, size=256, samples={"train": 1024})
        alone = replace(deit_tiny.RECIPE, **SMALL)
        live = replace(deit_tiny_distilled.RECIPE, **SMALL)
        write_random_weights(live, folder / "teacher.safetensors")
        live = replace(live, distill=replace(live.distill, weights=str(folder / "teacher.safetensors")))
        stored = replace(live, distill=replace(live.distill, store=str(folder / "store")))
        recipes: dict[str, Recipe] = {"alone": alone, "stored": stored, "live": live}
        jobs = {
            name: resolve(Request(recipe=recipe, data=str(dataset.folder)), FILLING, hosting)
            for name, recipe in recipes.items()
        }
        fill(jobs["stored"])
        accelerator = build_accelerator(hosting, alone.compute)
        runs = {name: build(job, accelerator, MicroBatch(job, accelerator)) for name, job in jobs.items()}
        rounds = [{name: seconds_of(run, STEPS) / STEPS for name, run in runs.items()} for _ in range(ROUNDS + 1)][1:]
        for run in runs.values():
            run.feed.close()
    seconds = {name: statistics.median(times[name] for times in rounds) for name in recipes}
    print(
        json.dumps(
            {
                "what": "a teacher's share of a step, deit_tiny and RegNetY-16GF, 224 px",
                "seconds_a_step": {name: round(value, 3) for name, value in seconds.items()},
                "stored_over_alone": round(statistics.median(r["stored"] / r["alone"] for r in rounds), 3),
                "live_over_stored": round(statistics.median(r["live"] / r["stored"] for r in rounds), 2),
                "views_a_step": SMALL["batch"],
                "n": ROUNDS,
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


def fill(job: Job) -> None:
    recipe, order = job.recipe, job.order
    store = Store(Path(recipe.distill.store), order, 1, job.store_fingerprint)
    rng = np.random.default_rng(0)
    for step in range((ROUNDS + 1) * STEPS):
        for rank in range(recipe.virtual_ranks):
            store.write(step, rank, rng.integers(1, 1001, (order.rank_batch, 1), dtype=np.uint16))


if __name__ == "__main__":
    main()
