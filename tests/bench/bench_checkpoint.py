"""How long a checkpoint of DeiT-B stops training, and how long it is written beside it: seconds, medians."""

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.checkpoint import Writer, on_host
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import REHEARSAL, resolve
from pipeline.micro_batch import MicroBatch
from pipeline.request import Request
from pipeline.train import build
from recipes import deit_base
from shards.synthetic import make_dataset

ROUNDS = 5


def main() -> None:
    recipe = replace(deit_base.RECIPE, batch=2, virtual_ranks=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = make_dataset(folder / "data", classes=1000, size=32, samples={"train": 8})
        request = Request(recipe=recipe, data=str(dataset.folder), max_steps=1)
        job = resolve(request, REHEARSAL, Hosting(cores=torch.get_num_threads()))
        accelerator = build_accelerator(job.hosting, recipe.compute)
        run = build(job, accelerator, MicroBatch(job, accelerator))
        for parameter in run.weights.net.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.weights.engine.update(1e-6, 0.0)  # makes the moments
        writer, stopped, written = Writer(), [], []
        for number in range(ROUNDS + 1):
            started = time.perf_counter()
            tensors = on_host(run.weights.tensors(), run.weights.groups, keep=True)
            writer.save(folder / "checkpoints", number, {}, tensors, keep=1)
            stopped.append(time.perf_counter() - started)
            writer.wait()
            written.append(time.perf_counter() - started)
        run.feed.close()
        size = sum(tensor.numel() * tensor.element_size() for group in tensors.values() for tensor in group.values())
    print(
        json.dumps(
            {
                "what": "a checkpoint of DeiT-B: weights, average, two moments",
                "gigabytes": round(size / 1e9, 2),
                "training_stops_seconds": round(statistics.median(stopped[1:]), 3),
                "until_written_seconds": round(statistics.median(written[1:]), 2),
                "n": ROUNDS,
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
