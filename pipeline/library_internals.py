"""What we use of libraries beyond their public interfaces, and nothing else does.

`setup.cfg` caps their versions, and `tests/pipeline/test_library_internals.py` notices when one of these changes.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dis import opname
from inspect import currentframe
from math import prod
from multiprocessing.process import BaseProcess
from traceback import walk_stack
from types import FrameType, ModuleType
from typing import Any, Final

import torch
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from timm.models import VisionTransformer
from timm.models.vgg import _filter_fn
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

RETURNS: Final = ("RETURN_VALUE", "RETURN_CONST")  # how frames end that no exception ends

KILLED_WITHIN: Final = 2.0  # seconds: a process that waits for a disk may outlive a kill


def frame_of(module: ModuleType) -> FrameType | None:
    """Return the frame that runs a module's code, None where none of those that called this does."""
    frames = [frame for frame, _ in walk_stack(currentframe()) if frame.f_globals is vars(module)]
    return frames[-1] if frames else None


def has_returned(frame: FrameType) -> bool:
    """Return whether a frame that is over came to its end: its last instruction was a return."""
    return opname[frame.f_code.co_code[frame.f_lasti]] in RETURNS


def workers_of(batches: Any) -> list[BaseProcess]:
    """Return the worker processes behind an iterator of torch's DataLoader, none where it has none."""
    return list(batches._workers) if isinstance(batches, _MultiProcessingDataLoaderIter) else []


def awaited_worker(batches: Any) -> int | None:
    """Return the number of the worker whose batch an iterator with workers gives next, None at its end."""
    task = batches._task_info.get(batches._rcvd_idx)
    return task[0] if task else None


def shared_bytes(*shape: int) -> Tensor:
    """Return zeros, uint8, in shared memory, made there as in torch's own collating, where `share_memory_` copies.

    Raises RuntimeError where there is no room.
    """
    storage = torch.UntypedStorage._new_shared(prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def end_workers(batches: Any) -> None:
    """End the worker processes behind an iterator of torch's DataLoader, where it has some."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()


def kill_workers(batches: Any) -> None:
    """Kill the workers behind an iterator that failed.

    Ending them would wait for good where one is blocked, or was killed with a message half written.
    """
    _remove_worker_pids(id(batches))
    batches._worker_pids_set, batches._shutdown = False, True
    if hasattr(batches, "_pin_memory_thread_done_event"):
        batches._pin_memory_thread_done_event.set()
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join(KILLED_WITHIN)


@contextmanager
def board_errors_raised_once() -> Iterator[None]:
    """Have no error printed that ends TensorBoard's writing thread: it is raised again where the run writes."""
    hook = threading.excepthook

    def others(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.thread, _AsyncWriterThread):
            hook(failed)

    threading.excepthook = others
    try:
        yield
    finally:
        threading.excepthook = hook


def cpu_has_bf16() -> bool:
    """Return whether this processor computes in bf16, not only stores it (AVX512-BF16)."""
    supported: bool = torch.cpu._is_avx512_bf16_supported()
    return supported


def batch_norms(net: nn.Module) -> list[Any]:
    """Return a model's batch norms of any number of dimensions."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def vit_names(tensors: Mapping[str, Tensor], net: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights of a ViT made elsewhere by timm's names, position embeddings resized to the model's grid."""
    # DeiT III calls its layer scale gamma_1 and gamma_2
    renamed: dict[str, Tensor] = checkpoint_filter_fn(dict(tensors), net, adapt_layer_scale=True)
    return renamed


def vgg_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of torchvision's VGG by timm's names."""
    renamed: dict[str, Tensor] = _filter_fn(dict(tensors))
    return renamed


def move_towards(tensors: list[Tensor], ends: list[Tensor], share: float) -> None:
    """Move tensors by a share of the way to others, in place, all in one kernel where there is one."""
    torch._foreach_lerp_(tensors, ends, weight=share)


def copy_all(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, all in one kernel where there is one."""
    torch._foreach_copy_(tensors, sources)


def exchange_over_torch_alone() -> None:
    """Keep DeepSpeed from an exchange of its own on the CPU.

    DeepSpeed 0.19 compiles it where it is first used, minutes in silence, and fails where there is no compiler.
    """
    from deepspeed import ops  # takes seconds, and only its engines need it

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def link_optimizer_state(optimizer: Any) -> None:
    """Let parameters know of their state in DeepSpeed's ZeRO 1 and 2.

    DeepSpeed 0.19 does it when the first of several parameter groups is stepped, too early for the others.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
