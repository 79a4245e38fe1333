"""The memory that a step takes is the one that `vitrail plan` says."""

from dataclasses import replace
from pathlib import Path

import torch

from launch.plan import Cluster, make_plan
from pipeline.config import Compute
from pipeline.job import REHEARSAL, resolve
from pipeline.request import Request
from recipes import deit_tiny
from shards.synthetic import make_dataset
from tests.gpu.comparing import Property
from tests.running import train_here
from tests.tiny import TINY

IMAGES = 256  # of a pass: beside their activations all else is small


def test_memory_is_what_the_plan_says(card: None, tmp_path: Path, record_property: Property) -> None:
    data = make_dataset(tmp_path / "data", classes=4, size=232, samples={"train": IMAGES, "test": 4})
    recipe = replace(
        deit_tiny.RECIPE,
        data=replace(deit_tiny.RECIPE.data, classes=4, images=IMAGES),
        compute=Compute(compile="off"),  # which keeps less
        checkpoint=TINY.checkpoint,
        eval=TINY.eval,
        log=TINY.log,
        batch=IMAGES,
        virtual_ranks=1,
        epochs=4,
        precision="bf16",
    )
    job = resolve(Request(recipe=recipe, data=str(data.folder), output=str(tmp_path / "run")), REHEARSAL)
    planned = sum(make_plan(job, Cluster(nodes=1, gpus_per_node=1)).memory.values())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert train_here(data, tmp_path / "run", recipe, max_steps=3) == 0
    held = torch.cuda.max_memory_allocated() - before
    record_property("planned", f"{planned / 1e9:.2f} GB")
    record_property("held at most", f"{held / 1e9:.2f} GB")
    record_property("ratio", f"{held / planned:.3f}")
    assert 0.9 < held / planned < 1.1
