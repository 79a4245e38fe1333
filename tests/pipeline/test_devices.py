"""What is known of accelerators, without one."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import devices
from pipeline.devices import compiles, device_name, device_problems, has_native_bf16, pins, to_device, to_host
from pipeline.library_internals import cpu_has_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "processes", "says"),
    [
        ("cpu", 4, ""),
        ("cuda", 4, ""),
        ("xpu", 4, ""),
        ("mps", 1, ""),
        ("mps", 2, "2 processes cannot train on mps"),
        ("hpu", 1, "computes on hpu, which Vitrail does not know"),
    ],
)
def test_what_cannot_train_is_refused(kind: str, processes: int, says: str) -> None:
    found = [problem.sentence for problem in device_problems(torch.device(kind), processes)]
    assert len(found) == bool(says)
    assert says in "".join(found)


def test_a_processor_is_no_accelerator() -> None:
    assert device_name(CPU) == "cpu"
    assert has_native_bf16(CPU) == cpu_has_bf16()
    assert not compiles(CPU)
    assert not pins(CPU)
    assert devices.peak_memory(CPU) > 1e6
    free, total = devices.memory(CPU)
    assert 0 < free <= total


def test_a_tensor_of_the_host_is_there_already() -> None:
    numbers = torch.arange(3)
    assert to_host(numbers).copied is None
    assert to_host(numbers).arrived() is numbers
    assert to_device(numbers, CPU) is numbers


def test_a_pinned_tensor_travels_on_a_stream_that_the_device_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    there = SimpleNamespace(record_stream=lambda _: done.append("kept for the one that computes"))

    def copy(*_: Any, non_blocking: bool) -> Any:
        done.append(f"copied, not waited for: {non_blocking}")
        return there

    pinned: Any = SimpleNamespace(is_pinned=lambda: True, to=copy)
    computes = SimpleNamespace(wait_stream=lambda _: done.append("the device waits"))
    monkeypatch.setattr(devices, "copy_stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda _: computes)
    assert to_device(pinned, torch.device("cuda")) is there
    assert done == ["copied, not waited for: True", "the device waits", "kept for the one that computes"]
