"""The accelerator of this process: what torch calls it, what is known of each kind, and what is asked of it.

Nobody else names a kind of device to find out what one can do: the rest asks here, or torch.accelerator.
"""

import resource
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import psutil
import torch
from torch import Tensor

from pipeline.library_internals import cpu_has_bf16
from shards.errors import Problem

CPU: Final = torch.device("cpu")
KINDS: Final[Mapping[str, str]] = {  # that a run takes; README says which of them were tried
    "cpu": "processor",
    "cuda": "NVIDIA's GPUs, and AMD's under ROCm",
    "xpu": "Intel's GPUs",
    "mps": "Apple's GPUs",
}
SHARED_MEMORY: Final = ("cpu", "mps")  # compute in the machine's own memory, where nothing is pinned
ALONE: Final = ("mps",)  # torch exchanges nothing between processes there
VOLTA: Final = (7, 0)  # compute capability


def current() -> torch.device:
    """Return what this process computes on: the accelerator that torch sees, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or CPU


def device_problems(device: torch.device, processes: int) -> Iterator[Problem]:
    """Yield what keeps so many processes from training on a kind of device."""
    if device.type not in KINDS:
        known = ", ".join(f"{kind} ({what})" for kind, what in KINDS.items())
        yield Problem(
            "",
            f"this torch computes on {device.type}, which Vitrail does not know. It knows {known}: install a torch for "
            f"one of these.",
        )
    elif device.type in ALONE and processes > 1:
        yield Problem(
            "",
            f"{processes} processes cannot train on {device.type}: torch exchanges no gradients between them there. "
            f"Start one process, which hosts all virtual ranks.",
        )


def device_name(device: torch.device) -> str:
    """Return what a device is called by its maker, or its kind where torch does not say."""
    named: Any = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device)) if named else device.type


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bf16, not only stores it."""
    if device.type == "cpu":
        return cpu_has_bf16()
    supported: Any = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return bool(supported and supported(including_emulation=False))


def compiles(device: torch.device) -> bool:
    """Return whether torch.compile makes kernels for a device: by Triton, which takes NVIDIA's from Volta on."""
    if device.type not in ("cuda", "xpu") or find_spec("triton") is None:
        return False
    return device.type == "xpu" or bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= VOLTA


def pins(device: torch.device) -> bool:
    """Return whether a device copies what it is sent from pinned memory, beside its work."""
    return device.type not in SHARED_MEMORY


def memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes that are free for a device, and all that there are."""
    if device.type in SHARED_MEMORY:
        machine = psutil.virtual_memory()
        return machine.available, machine.total
    return torch.accelerator.get_memory_info(device)


def peak_memory(device: torch.device) -> int:
    """Return the largest memory that this process held, in bytes: the device's, or resident where that is the same."""
    if device.type in SHARED_MEMORY:
        # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return torch.accelerator.max_memory_allocated(device)


def mark(device: torch.device, *, timed: bool = False) -> torch.Event | None:
    """Return a mark in a device's queue, passed when all that was asked of it is done; None on the CPU.

    `timed` marks know how far apart they were passed.
    """
    if device.type == "cpu":
        return None
    event = torch.Event(device.type, enable_timing=timed)
    event.record()
    return event


@cache
def copy_stream(device: torch.device) -> torch.Stream:
    """Return the stream of a device that takes what the host sends, beside the one that computes."""
    return torch.Stream(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host's tensor on a device, in one copy that the host does not wait for where the tensor is pinned.

    Then it travels on a stream of its own, while the device computes what was asked of it before: the host is a step
    ahead of the device (`pipeline/session/events.py` waits for the step before last), and so is the next batch. The
    device alone waits for it, where it computes with it first.
    """
    if not tensor.is_pinned():
        return tensor.to(device, non_blocking=True)
    copies, computes = copy_stream(device), torch.accelerator.current_stream(device)
    with copies:
        there = tensor.to(device, non_blocking=True)
    computes.wait_stream(copies)
    there.record_stream(computes)  # its memory is the copies' stream's, which must not have it back too early
    return there


class Sent(NamedTuple):
    """A tensor on its way to the host, which nobody waits for until it is read."""

    tensor: Tensor
    copied: torch.Event | None  # None where it was there all along

    def arrived(self) -> Tensor:
        """Return it, on the host, when it is there."""
        if self.copied:
            self.copied.synchronize()
        return self.tensor


def to_host(tensor: Tensor) -> Sent:
    """Have a tensor copied to the host, without waiting."""
    return Sent(tensor.to("cpu", non_blocking=True), mark(tensor.device))
