"""CPU affinity: the cores that a process and its loader workers have, on the GPU's side of the machine.

accelerate's own (`--enable_cpu_affinity`) takes all cores of that side, those of other jobs too, and asks for a package
more. What srun or a container allows is never widened here.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from shards.parallel import allowed_cores

PCI: Final = Path("/sys/bus/pci/devices")


class Affinity(NamedTuple):
    """The cores that a process is to be bound to, none where it stays as it is, and how many of them are its share."""

    bound: tuple[int, ...]
    share: int


def affinity(process: int, processes: int) -> Affinity:
    """Return the affinity of one of the processes of this node, each of which has the GPU of its number."""
    with_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= processes
    beside = [cores_beside(pci_address(gpu)) for gpu in range(processes)] if with_gpus else []
    return shared_out(allowed_cores(), beside, process, processes)


def shared_out(allowed: AbstractSet[int], beside: Sequence[AbstractSet[int]], process: int, processes: int) -> Affinity:
    """Return the affinity of a process among those that may use some cores; `beside` are those near each one's GPU.

    It is bound to those beside its GPU, which it shares with the processes of other GPUs there, unless they are less
    than an equal share of all.
    """
    equal = max(1, len(allowed) // processes)
    near = [cores & allowed for cores in beside]
    if not near or (share := len(near[process]) // near.count(near[process])) < equal:
        return Affinity((), equal)
    return Affinity(tuple(sorted(near[process])), share)


def pci_address(gpu: int) -> str:
    """Return where a GPU sits: domain, bus and device."""
    found: Any = torch.cuda.get_device_properties(gpu)
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def cores_beside(address: str, pci: Path = PCI) -> set[int]:
    """Return the cores on the side of a PCI device, as Linux lists them (`0-7,64-71`); none where it does not say."""
    try:
        said = (pci / address / "local_cpulist").read_text().strip()
    except OSError:
        return set()
    bounds = [part.partition("-") for part in said.split(",") if part]
    return {core for first, _, last in bounds for core in range(int(first), int(last or first) + 1)}
