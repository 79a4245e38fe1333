"""What `--finetune.cache` saves of an epoch: seconds with a filled cache and without one, in turns, end to end.

    python tests/bench/bench_prefix.py [IMAGES [THREADS]]

A ViT-Ti at 224 px in fp32, 256 px JPEGs, batches of 32, one process that loads its batches itself: reading, decoding or
reading rows, forward, backward, update; no evaluation. One JSON line a strategy: medians of n rounds, after one that
fills the cache and is not counted.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for a script that lies in no package

from pipeline.config import Augment, Data, Ema, Finetune, Model, Optim, Recipe
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import FILLING, Job, resolve
from pipeline.micro_batch import MicroBatch
from pipeline.request import Request
from pipeline.train import build
from shards.dataset import Dataset
from shards.synthetic import make_dataset
from tests.bench.stopwatch import seconds_of

ROUNDS: Final = 5
STRATEGIES: Final = ("linear", "partial-1", "partial-2", "partial-6")
BATCH: Final = 32


def job_of(strategy: str, cache: str, dataset: Dataset) -> Job:
    recipe = Recipe(
        name="prefix",
        model=Model(name="vit_tiny_patch16_224"),
        data=Data(classes=10, images=len(dataset.splits["train"])),
        augment=Augment(crop="whole", flip=0.0),
        finetune=Finetune(strategy=strategy, cache=cache),
        optim=Optim(lr=1e-3, warmup_epochs=0.0),
        ema=Ema(decay=0.0),
        batch=BATCH,
        virtual_ranks=1,
        epochs=ROUNDS + 1,
        precision="fp32",
    )
    request = Request(recipe=recipe, data=str(dataset.folder))
    return resolve(request, FILLING, Hosting(workers=0, cores=torch.get_num_threads()))


def main() -> None:
    images, threads = (int(word) for word in (*sys.argv[1:], *("256", "1")[len(sys.argv) - 1 :]))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = make_dataset(Path(scratch) / "data", classes=10, size=256, samples={"train": images})
        for strategy in STRATEGIES:
            jobs = {"whole": job_of(strategy, "", dataset), "cached": job_of(strategy, f"{scratch}/cache", dataset)}
            accelerator = build_accelerator(jobs["whole"].hosting, jobs["whole"].recipe.compute)
            runs = {name: build(job, accelerator, MicroBatch(job, accelerator)) for name, job in jobs.items()}
            rounds = [
                {name: seconds_of(run, run.schedule.steps_per_epoch) for name, run in runs.items()}
                for _ in range(ROUNDS + 1)
            ][1:]
            rows = jobs["cached"].rows
            assert rows
            print(
                json.dumps(
                    {
                        "what": f"{strategy}: cut before {rows.folder.name}",
                        "images": images,
                        "threads": threads,
                        "trained_parameters": jobs["cached"].trained_parameters,
                        "seconds_an_epoch": {
                            name: round(statistics.median(times[name] for times in rounds), 3) for name in runs
                        },
                        "times_as_fast": round(statistics.median(r["whole"] / r["cached"] for r in rounds), 2),
                        "kB_an_image": round(rows.bytes / 1e3, 1),
                        "n": ROUNDS,
                        "load": round(os.getloadavg()[0], 1),
                        "machine": platform.processor() or platform.machine(),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
