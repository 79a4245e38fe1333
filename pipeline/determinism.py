"""The promise that the same hosting gives the same bits: what `--compute.deterministic` asks of torch.

Without it, kernels that add up in the order in which threads arrive are allowed: attention's backward pass, scatters,
cuBLAS's products. What a device sees is the same with and without.
"""

import os
from collections.abc import Iterator
from typing import Final

import torch

from pipeline.config import Compute
from shards.errors import Problem

WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS when it starts
WORKSPACES: Final = (":4096:8", ":16:8")  # with which cuBLAS is deterministic; the first one is the faster
TORCH_SAYS: Final = ("does not have a deterministic implementation", "Deterministic behavior was enabled")


def determinism_problems(compute: Compute, device: torch.device) -> Iterator[Problem]:
    """Yield what keeps a device from the promise that is asked for."""
    said = os.environ.get(WORKSPACE, "")
    if compute.deterministic and device.type == "cuda" and said and said not in WORKSPACES:
        yield Problem(
            "compute.deterministic",
            f"{WORKSPACE}={said}: cuBLAS is deterministic with {' and '.join(WORKSPACES)} alone. `unset {WORKSPACE}`, "
            f"or give up equal bits: --compute.no-deterministic.",
        )


def promise(compute: Compute) -> None:
    """Have torch keep the promise in this process, or not; before the device computes anything."""
    if compute.deterministic and not os.environ.get(WORKSPACE):
        os.environ[WORKSPACE] = WORKSPACES[0]
    torch.use_deterministic_algorithms(compute.deterministic)
    # all that is read was written before: to fill it first costs time and changes nothing
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # one algorithm, chosen without timing
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = compute.deterministic


def remedy(error: Exception) -> str:
    """Return what to do about an operation that keeps no promise; empty where an error is another one."""
    if not (isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_SAYS)):
        return ""
    operation = str(error).partition(" ")[0]
    return (
        f"{operation}, which this network needs, cannot give the same bits twice on this device. Take another network, "
        f"or give up that a resumed run is equal bit for bit: --compute.no-deterministic."
    )
