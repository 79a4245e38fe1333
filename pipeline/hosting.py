"""Hosting: which process works for which virtual ranks, on what device, with what precision.

The only module that knows about processes and devices; nothing it returns changes which numbers a run sees.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from pipeline.config import EngineName
from shards.errors import BadRequest, TrainingError

REPOSITORY: Final = Path(__file__).parents[1]
ENGINE_VARIABLES: Final = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")  # how `accelerate launch` names one


def hosted(virtual_ranks: int, processes: int, process: int) -> range:
    """Return the virtual ranks of a process: equal shares, the first processes one more (16 on 3: 6, 5, 5)."""
    share, rest = divmod(virtual_ranks, processes)
    first = process * share + min(process, rest)
    return range(first, first + share + (process < rest))


def processes_of_launch() -> tuple[int, int]:
    """Return (number of processes, number of this one) as the launcher says them, before anything is built."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def engine_of_launch() -> EngineName:
    """Return the engine that the launcher's configuration names.  Raises BadRequest for one that is none of ours."""
    deepspeed, fsdp = (os.environ.get(name, "false").lower() == "true" for name in ENGINE_VARIABLES)
    if fsdp:
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise BadRequest(["the launcher's configuration asks for FSDP 1; take launch/configs/fsdp2.yaml."])
        return "fsdp2"
    return zero_of(deepspeed_settings()) if deepspeed else "ddp"


def engine_of_config(path: Path) -> EngineName:
    """Return the engine that a configuration file for `accelerate launch` names."""
    config: Any = load_config_from_file(str(path))
    if config.distributed_type == DistributedType.FSDP:
        return "fsdp2"
    if config.distributed_type == DistributedType.DEEPSPEED:
        return zero_of(deepspeed_settings(config.deepspeed_config["deepspeed_config_file"]))
    return "ddp"


def zero_of(settings: dict[str, Any]) -> EngineName:
    """Return the stage of ZeRO that DeepSpeed's settings ask for."""
    names: dict[int, EngineName] = {1: "zero1", 2: "zero2", 3: "zero3"}
    return names[settings["zero_optimization"]["stage"]]


def deepspeed_settings(file: str = "") -> dict[str, Any]:
    """Return DeepSpeed's settings, of a JSON file or else the one that the launcher's configuration names.

    Its path is relative to where the launcher was started, or else to this repository. Raises BadRequest where it
    asks for no stage of ZeRO.
    """
    path = Path(file or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
    try:
        settings: dict[str, Any] = json.loads((path if path.exists() else REPOSITORY / path).read_text())
        if settings["zero_optimization"]["stage"] not in (1, 2, 3):
            raise ValueError("it has another stage")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(
            [
                f"deepspeed_config_file {path}: not a JSON file with zero_optimization.stage 1, 2 or 3 ({error!r}). "
                f"Take one of launch/configs/deepspeed_zero*.yaml."
            ]
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


def resolve_precision(precision: Literal["auto", "bf16", "fp32"]) -> Literal["bf16", "fp32"]:
    """Return the precision on this machine: `auto` is bf16 where the processor computes in it, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def build_accelerator(precision: Literal["bf16", "fp32"], *, tf32: bool = True) -> Accelerator:
    """Return the Accelerator of this process.  Raises TrainingError if it sees fewer processes than were started."""
    on_cpu = not torch.accelerator.is_available()
    # buffers are equal everywhere already, batch norm's by `pipeline/batch_norm.py`
    exchange = DistributedDataParallelKwargs(broadcast_buffers=False)
    mixed = "bf16" if precision == "bf16" else "no"
    with _engine_hidden():
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[exchange])
    started, _ = processes_of_launch()
    if accelerator.num_processes != started:
        raise TrainingError(
            f"The launcher started {started} processes, but Accelerate formed a group of "
            f"{accelerator.num_processes}: each would train alone. Check its configuration file (accelerate env)."
        )
    if on_cpu:  # accelerate and torchrun leave one thread a process
        torch.set_num_threads(cores_per_process())
    # one algorithm, chosen without timing: with the same hosting a resumed run is equal bit for bit
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return accelerator


def cores_per_process() -> int:
    """Return how many of this machine's cores a training process may use."""
    cores = len(psutil.Process().cpu_affinity())
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_workers(workers: int | Literal["auto"]) -> int:
    """Return the number of loader processes beside this one; `auto` is a core each, one at least, 16 at most.

    On a machine without an accelerator the model needs the cores itself, and one worker keeps up with it.
    """
    if workers != "auto":
        return workers
    return min(cores_per_process(), 16) if torch.accelerator.is_available() else 1
