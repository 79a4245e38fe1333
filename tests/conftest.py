"""Data that the tests share, and what is put back after each of them."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState

from pipeline.data.loader import STOP_SIGNALS
from shards.dataset import Dataset
from shards.synthetic import make_dataset
from tests.running import train_here

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` would have it ignored, and all processes with it


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """70 training and 21 test images of 24 px in 4 classes, in shards of 16."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    return make_dataset(folder, classes=4, size=24, samples={"train": 70, "test": 21})


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with its moving average."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train_here(dataset, folder, max_steps=2) == 0
    return folder


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Forget Accelerate's process-wide state and our signal handlers after each run in this process."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
