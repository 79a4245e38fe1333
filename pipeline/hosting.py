"""Hosting: which process works for which virtual ranks, under which engine, with what precision and how many workers.

What the launcher and the machine say is read here, once, into one value; nothing in it changes which numbers a run
sees.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from pipeline.config import Compute, EngineName, Precision, Recipe
from pipeline.errors import TrainingError
from pipeline.library_internals import cpu_has_bf16
from shards.errors import BadRequest

REPOSITORY: Final = Path(__file__).parents[1]
ENGINE_VARIABLES: Final = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")  # how `accelerate launch` names one
MOST_WORKERS: Final = 16  # of a process, where their number is chosen for it


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """Where a run computes, or would."""

    processes: int = 1
    process: int = 0  # this one
    local_process: int = 0  # this one among those on its node
    engine: EngineName = "ddp"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)  # its settings, where it is the engine
    precision: Precision = "fp32"
    workers: int = 0  # loader processes beside each process
    cores: int = 1  # of a process

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.process == 0

    def virtual_ranks(self, virtual_ranks: int) -> range:
        """Return those of so many virtual ranks that this process hosts."""
        return hosted(virtual_ranks, self.processes, self.process)

    def shares(self, virtual_ranks: int) -> list[int]:
        """Return how many of so many virtual ranks each process hosts."""
        return [len(hosted(virtual_ranks, self.processes, process)) for process in range(self.processes)]


def hosted(virtual_ranks: int, processes: int, process: int) -> range:
    """Return the virtual ranks of a process: equal shares, the first processes one more (16 on 3: 6, 5, 5)."""
    share, rest = divmod(virtual_ranks, processes)
    first = process * share + min(process, rest)
    return range(first, first + share + (process < rest))


def hosting_of_launch(recipe: Recipe) -> Hosting:
    """Return how the launcher and this machine host a recipe, before anything is built.

    Raises BadRequest where the launcher's configuration names an engine that is none of ours.
    """
    settings: dict[str, Any] = {}
    engine: EngineName = "ddp"
    deepspeed, fsdp = (os.environ.get(name, "false").lower() == "true" for name in ENGINE_VARIABLES)
    if fsdp:
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise BadRequest.of("", "the launcher's configuration asks for FSDP 1; take launch/configs/fsdp2.yaml.")
        engine = "fsdp2"
    elif deepspeed:
        settings = deepspeed_settings(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
        engine = zero_engine(settings)
    cores = max(1, len(psutil.Process().cpu_affinity()) // _number("LOCAL_WORLD_SIZE", 1))
    return Hosting(
        processes=_number("WORLD_SIZE", 1),
        process=launched_process(),
        local_process=launched_process(local=True),
        engine=engine,
        deepspeed=settings,
        precision=native_precision() if recipe.precision == "auto" else recipe.precision,
        workers=_workers(recipe, cores),
        cores=cores,
    )


def launched_process(*, local: bool = False) -> int:
    """Return the number of this process among those that the launcher started, or among those on this node."""
    return _number("LOCAL_RANK" if local else "RANK", 0)


def _number(variable: str, otherwise: int) -> int:
    """Return what a launcher says in a variable; an empty one says nothing."""
    return int(os.environ.get(variable) or otherwise)


def _workers(recipe: Recipe, cores: int) -> int:
    """Return the loader processes beside each process; `auto` is a core each, up to a limit.

    On a machine without an accelerator the model needs the cores itself, and one worker keeps up with it.
    """
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return min(cores, MOST_WORKERS) if torch.accelerator.is_available() else 1


def native_precision() -> Precision:
    """Return the precision that this machine is fastest in: bf16 where the processor computes in it, else fp32."""
    on_gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    return "bf16" if native else "fp32"


def engine_of_config(path: Path) -> EngineName:
    """Return the engine that a configuration file for `accelerate launch` names.  Raises BadRequest as above."""
    config: Any = load_config_from_file(str(path))
    if config.distributed_type == DistributedType.FSDP:
        return "fsdp2"
    if config.distributed_type == DistributedType.DEEPSPEED:
        return zero_engine(deepspeed_settings(config.deepspeed_config["deepspeed_config_file"]))
    return "ddp"


def zero_engine(settings: Mapping[str, Any]) -> EngineName:
    """Return the stage of ZeRO that DeepSpeed's settings ask for."""
    names: dict[int, EngineName] = {1: "zero1", 2: "zero2", 3: "zero3"}
    return names[settings["zero_optimization"]["stage"]]


def deepspeed_settings(file: str) -> dict[str, Any]:
    """Return DeepSpeed's settings of a JSON file, relative to where the launcher was started or to this repository.

    Raises BadRequest where it asks for no stage of ZeRO.
    """
    path = Path(file)
    try:
        settings: dict[str, Any] = json.loads((path if path.exists() else REPOSITORY / path).read_text())
        if settings["zero_optimization"]["stage"] not in (1, 2, 3):
            raise ValueError("it has another stage")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest.of(
            "",
            f"deepspeed_config_file {path}: not a JSON file with zero_optimization.stage 1, 2 or 3 ({error!r}). "
            f"Take one of launch/configs/deepspeed_zero*.yaml.",
        ) from error
    return settings


@contextmanager
def _engine_hidden() -> Iterator[None]:
    """Hide the launcher's engine from Accelerate, which would set it up in its own way.

    Its DeepSpeed wants the package transformers, and its FSDP trains each process alone where there is no GPU.
    """
    hidden = {name: os.environ.pop(name) for name in ENGINE_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def build_accelerator(hosting: Hosting, compute: Compute) -> Accelerator:
    """Return the Accelerator of this process.  Raises TrainingError if it sees fewer processes than were started."""
    on_cpu = not torch.accelerator.is_available()
    # buffers are equal everywhere already, batch norm's by `pipeline/model/batch_norm.py`
    exchange = DistributedDataParallelKwargs(broadcast_buffers=False)
    mixed = "bf16" if hosting.precision == "bf16" else "no"
    with _engine_hidden():
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[exchange])
    if accelerator.num_processes != hosting.processes:
        raise TrainingError(
            f"The launcher started {hosting.processes} processes, but Accelerate formed a group of "
            f"{accelerator.num_processes}: each would train alone. Check its configuration file (accelerate env)."
        )
    if on_cpu:  # accelerate and torchrun leave one thread a process
        torch.set_num_threads(hosting.cores)
    # one algorithm, chosen without timing: with the same hosting a resumed run is equal bit for bit
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    return accelerator
