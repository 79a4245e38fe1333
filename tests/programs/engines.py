"""Several runs in one group of processes, each under an engine: `engines.py WHAT FOLDER DATA ...`, see the functions.

Starting processes costs more than the runs do, so one group takes them all, one after the other.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from pipeline.config import Compute, Finetune, Recipe, Spike
from pipeline.data.batch import Batch
from pipeline.hosting import ENGINE_VARIABLES
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.session.events import Events
from pipeline.session.session import Parts
from tests.tiny import ENGINES, HERE

ROOT = Path(__file__).parents[2]
SPIKING = ("ddp", "fsdp2", "zero1", "zero3")
COMPILING = ("ddp", "fsdp2", "zero2")


def become(engine: str) -> None:
    """Make this process one that `accelerate launch` has started with an engine's configuration, after others."""
    for name in ENGINE_VARIABLES:
        os.environ.pop(name, None)
    if engine == "fsdp2":
        os.environ.update({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    elif engine != "ddp":
        settings = ROOT / "launch/configs" / f"deepspeed_{engine}.json"
        os.environ.update({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(settings)})
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def train(recipe: Recipe, parts: Parts | None = None, **options: object) -> None:
    code = carry_out(Request(recipe=recipe, **options), parts or Parts())  # type: ignore[arg-type]
    assert code == 0, code


def matrix(folder: str, data: str, saved: str, last: str, start: str, *engines: str) -> None:
    """Train up to the step `saved` under each engine, and from the checkpoint of the run `start` on to `last`."""
    processes = os.environ["WORLD_SIZE"]
    for engine in engines:
        become(engine)
        train(ENGINES, data=data, output=f"{folder}/{engine}-{processes}", max_steps=int(saved), resume="never")
    resume = f"{folder}/{start}/checkpoints/step-{int(saved):08d}"
    for engine in engines:
        become(engine)
        train(ENGINES, data=data, output=f"{folder}/{engine}-{processes}-on", max_steps=int(last), resume=resume)


def gradual(folder: str, data: str, *engines: str) -> None:
    """Train the head alone, then all, under each engine; the second phase is cut, and goes on."""
    recipe = replace(
        ENGINES,
        model=replace(ENGINES.model, dropout=0.2),
        finetune=Finetune(strategy="gradual", head_epochs=0.5, head_lr=0.01),
        optim=replace(ENGINES.optim, warmup_epochs=0),
        epochs=2,
    )
    for engine in engines:
        for last in (3, 5):
            become(engine)
            train(recipe, data=data, output=f"{folder}/{engine}", max_steps=last)


class Poisoned(Events):
    """Gives the model NaN for images at step 9, of virtual rank 1."""

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        super().after_batch(batch, images)
        if (batch.step, batch.virtual_rank) == (9, 1):
            assert images is not None
            images.fill_(float("nan"))


def spikes(folder: str, data: str) -> None:
    """Meet a spike under engines whose processes share weights, gradients and moments, and roll back."""
    recipe = replace(
        HERE,
        batch=16,
        virtual_ranks=4,
        epochs=3,
        spike=Spike(policy="rollback"),
        checkpoint=replace(HERE.checkpoint, every_steps=4, keep=1),
    )
    for engine in SPIKING:
        become(engine)
        train(recipe, Parts(events=Poisoned), data=data, output=f"{folder}/{engine}")


def optimizers(folder: str, data: str, names: str, *engines: str) -> None:
    """Train by each of timm's optimizers under each engine, stop, and go on."""
    for name in names.split(","):
        recipe = replace(HERE, batch=16, virtual_ranks=4, optim=replace(HERE.optim, name=name))
        for engine in engines:
            for last in (2, 4):
                become(engine)
                train(recipe, data=data, output=f"{folder}/{name}-{engine}", max_steps=last)


def compiled(folder: str, data: str) -> None:
    """Train compiled and with activation checkpointing; of one block, since compiling takes its time."""
    faster = Compute(compile="on", activation_checkpointing=True)
    recipe = replace(ENGINES, epochs=1, compute=faster, model=replace(ENGINES.model, depth=1))
    for engine in COMPILING:
        become(engine)
        train(recipe, data=data, output=f"{folder}/{engine}")


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    functions = (matrix, gradual, spikes, optimizers, compiled)
    {function.__name__: function for function in functions}[what](*arguments)
