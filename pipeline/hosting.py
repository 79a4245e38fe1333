"""Hosting: which process works for which virtual ranks, under which engine, with what precision and how many workers.

What the launcher and the machine say is read here, once, into one value; nothing in it changes which numbers a run
sees.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Timer
from typing import Any, Final

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from pipeline import devices
from pipeline.affinity import affinity
from pipeline.config import Compute, EngineName, Precision, Recipe
from pipeline.determinism import determinism_problems, promise
from pipeline.devices import device_problems
from pipeline.errors import TrainingError
from shards.errors import BadRequest, Problem, harmless

REPOSITORY: Final = Path(__file__).parents[1]
ENGINE_VARIABLES: Final = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")  # how `accelerate launch` names one
GROUP_VARIABLES: Final = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of torch's launchers
LAUNCHER_VARIABLES: Final = (*GROUP_VARIABLES, "LOCAL_WORLD_SIZE")
COUNTED: Final = tuple(name for name in LAUNCHER_VARIABLES if name != "MASTER_ADDR")  # numbers
OTHER_GROUPS: Final = {  # how many processes another program started, which torch does not hear of
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}
UNREAD: Final = {  # what `accelerate launch` hands on and a run does not read: what says nothing, its flag, the way on
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--gradient_accumulation_steps", "--micro-batch says how many "
                                               "images pass at a time, and changes no number"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--dynamo_backend", "--compute.compile on compiles"),
    "FSDP_OFFLOAD_PARAMS": ("false", "--fsdp_offload_params", "weights stay on their device"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "--fsdp_activation_checkpointing",
                                      "--compute.activation-checkpointing does that"),
}  # fmt: skip
PATIENCE: Final = 20  # seconds to wait for the other processes without a word
MOST_WORKERS: Final = 16  # of a process, where their number is chosen for it


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """Where a run computes, or would."""

    processes: int = 1
    process: int = 0  # this one
    local_process: int = 0  # this one among those on its node
    local_processes: int = 1  # on its node
    engine: EngineName = "ddp"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)  # its settings, where it is the engine
    precision: Precision = "fp32"
    workers: int = 0  # loader processes beside each process
    cores: int = 1  # of a process
    compiled: bool = False  # the model's blocks, by torch.compile; decided when a request is resolved
    bound: tuple[int, ...] = ()  # those that it is bound to, on its GPU's side; none: as it is

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.process == 0

    def virtual_ranks(self, virtual_ranks: int) -> range:
        """Return those of so many virtual ranks that this process hosts."""
        return hosted(virtual_ranks, self.processes, self.process)

    def virtual_ranks_of_node(self, virtual_ranks: int) -> list[int]:
        """Return those of so many virtual ranks that the processes of this node host."""
        first = self.process - self.local_process
        processes = range(first, first + self.local_processes)
        return [rank for process in processes for rank in hosted(virtual_ranks, self.processes, process)]

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

    Raises BadRequest where what the launcher says cannot be, or names an engine that is none of ours.
    """
    device = devices.current()
    precision = native_precision(device) if recipe.precision == "auto" else recipe.precision
    found = [*_group_problems(), *_unread_problems(precision), *determinism_problems(recipe.compute, device)]
    found += device_problems(device, _number("WORLD_SIZE", 1))
    if found:
        raise BadRequest(found)
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
    local_processes = _number("LOCAL_WORLD_SIZE", 1)
    bound, cores = affinity(launched_process(local=True), local_processes)
    return Hosting(
        processes=_number("WORLD_SIZE", 1),
        process=launched_process(),
        local_process=launched_process(local=True),
        local_processes=local_processes,
        engine=engine,
        deepspeed=settings,
        precision=precision,
        workers=loader_workers(recipe, cores),
        cores=cores,
        bound=bound,
    )


def launched_process(*, local: bool = False) -> int:
    """Return the number of this process among those that the launcher started, or among those on this node."""
    return _number("LOCAL_RANK" if local else "RANK", 0)


def _number(variable: str, otherwise: int) -> int:
    """Return the number that a launcher says in a variable; what is empty or no number says nothing."""
    said = os.environ.get(variable, "")
    return int(said) if said.isdecimal() else otherwise


def _group_problems() -> Iterator[Problem]:
    """Yield what keeps the processes that the launcher's variables speak of from meeting."""
    said = {name: os.environ[name] for name in LAUNCHER_VARIABLES if os.environ.get(name)}
    wrong = [name for name in COUNTED if name in said and not said[name].isdecimal()]
    for name in wrong:
        yield Problem("", f"{name}={said[name]} is no number: `unset {name}`, or start by accelerate launch.")
    if wrong:
        return
    processes, process = _number("WORLD_SIZE", 1), launched_process()
    missing = [name for name in GROUP_VARIABLES if name not in said]
    if missing and (processes > 1 or process or "LOCAL_RANK" in said):
        there = [name for name in GROUP_VARIABLES if name in said]
        yield Problem(
            "",
            f"{', '.join(f'{name}={said[name]}' for name in there)}: a launcher's variables without "
            f"{', '.join(missing)}, as one leaves them over. `unset {' '.join(there)}` to train with one process, or "
            f"start by accelerate launch.",
        )
    elif process >= processes:
        yield Problem(
            "", f"RANK={process} is none of WORLD_SIZE={processes}: `unset RANK`, or start by accelerate launch."
        )
    for counter, program in OTHER_GROUPS.items():
        if "WORLD_SIZE" not in said and (tasks := _number(counter, 1)) > 1:
            yield Problem(
                "",
                f"{program} started {tasks} processes ({counter}), each of which would train alone: start one a node, "
                f"accelerate launch, as slurm/train.sbatch does.",
            )


def _unread_problems(precision: Precision) -> Iterator[Problem]:
    """Yield what `accelerate launch` was told that a run does not read, and what it reads instead."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if asked not in ("", "no", precision):
        way = f"--precision {asked}" if asked == "bf16" else "bf16 and fp32 are what there is"
        yield Problem(
            "precision",
            f"accelerate's --mixed_precision {asked} is not read; --precision decides, which is {precision} here "
            f"({way}). {_set_to('no')}.",
        )
    told = {name: os.environ.get(name, "") for name in UNREAD}
    told["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = told["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] or _accumulation()
    for name, (nothing, option, instead) in UNREAD.items():
        if told[name].lower() not in ("", nothing):
            yield Problem("", f"accelerate's {option} {told[name]} is not read. {_set_to(nothing)}: {instead}.")


def _set_to(nothing: str) -> str:
    return f"Set it to {nothing}, in the command or in accelerate's configuration file, wherever it was said"


def _accumulation() -> str:
    """Return the steps to accumulate over that `accelerate launch` was told: it hands them on to DeepSpeed alone."""
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        for word, following in pairwise([*parent.cmdline(), ""] if parent else []):
            option, _, value = word.partition("=")
            if option.replace("-", "_") == "__gradient_accumulation_steps":
                return str(value or following)
    return ""


def loader_workers(recipe: Recipe, cores: int) -> int:
    """Return the loader processes beside each process; `auto` is a core each, up to a limit.

    On a machine without an accelerator the model needs the cores itself, and one worker keeps up with it.
    """
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return min(cores, MOST_WORKERS) if torch.accelerator.is_available() else 1


def native_precision(device: torch.device) -> Precision:
    """Return the precision that a device is fastest in: bf16 where it computes in it, else fp32."""
    return "bf16" if devices.has_native_bf16(device) else "fp32"


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
    """Hide the launcher's engine from Accelerate, which would set it up in its own way, and variables without a value.

    Its DeepSpeed wants the package transformers, and its FSDP trains each process alone where there is no GPU. It takes
    an empty variable for a number.
    """
    empty = [name for name in (*LAUNCHER_VARIABLES, *OTHER_GROUPS) if os.environ.get(name) == ""]
    hidden = {name: os.environ.pop(name) for name in {*ENGINE_VARIABLES, *empty} if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _waited_for(hosting: Hosting) -> Iterator[None]:
    """Say which variables speak of other processes, where these do not come: torch waits for them in silence."""
    said = " ".join(f"{name}={os.environ.get(name, '')}" for name in GROUP_VARIABLES)
    says = (
        f"Process {hosting.process} of {hosting.processes} has waited {PATIENCE} s for the others, and waits on. "
        f"A launcher said so: {said}. If none did, unset these variables."
    )
    timer = Timer(PATIENCE, lambda: print(harmless(says), file=sys.stderr, flush=True))
    timer.daemon = True
    if hosting.processes > 1 and hosting.local_process == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def build_accelerator(hosting: Hosting, compute: Compute) -> Accelerator:
    """Return the Accelerator of this process, before which the device has computed nothing.

    Raises TrainingError if it sees fewer processes than were started, or another device.
    """
    promise(compute)  # what cuBLAS is told has to be said before it starts
    if hosting.bound:
        try:
            psutil.Process().cpu_affinity(list(hosting.bound))  # and of the loader workers that it starts
        except (OSError, ValueError) as error:  # a container may allow less than it says
            print(f"Process {hosting.process} stays on all its cores, near its GPU or not: {error}", file=sys.stderr)
    device = devices.current()
    on_cpu = device.type == "cpu"
    # buffers are equal everywhere already, batch norm's by `pipeline/model/batch_norm.py`
    exchange = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    mixed = "bf16" if hosting.precision == "bf16" else "no"
    with _engine_hidden(), _waited_for(hosting):
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[exchange])
    if accelerator.num_processes != hosting.processes:
        raise TrainingError(
            f"The launcher started {hosting.processes} processes, but Accelerate formed a group of "
            f"{accelerator.num_processes}: each would train alone. Check its configuration file (accelerate env)."
        )
    if accelerator.device.type != device.type:
        raise TrainingError(
            f"torch computes on {device.type}, and Accelerate on {accelerator.device.type}. Check its configuration "
            f"file (accelerate env), and which device the environment hides."
        )
    if on_cpu:  # accelerate and torchrun leave one thread a process
        torch.set_num_threads(hosting.cores)
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    return accelerator
