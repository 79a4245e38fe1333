"""What is tested on a GPU: where it computes, when it is left out, and the page that is written at the end.

`VITRAIL_GPU_TESTS_ON=cpu` takes the CPU for the card: that shows that the tests themselves work, nothing else.
A test adds its figures to the page by pytest's `record_property`.
"""

import os
from pathlib import Path

import pytest
import torch

from shards.dataset import Dataset
from shards.synthetic import make_dataset
from tests.gpu.page import Check, machine, written

HERE = Path(__file__).parent
ON_CPU = os.environ.get("VITRAIL_GPU_TESTS_ON") == "cpu"
ABSENT = "no CUDA device: `make gpu` on a machine with one (docs/gpu.md)"
checks: list[Check] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; skip them where nothing can run them: no package gives a machine a GPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available() and not ON_CPU:
                item.add_marker(pytest.mark.skip(reason=ABSENT))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what became of a test of this folder."""
    if report.nodeid.startswith("tests/gpu/") and (report.when == "call" or report.outcome != "passed"):
        name = report.nodeid.partition("::test_")[2].replace("_", " ")
        figures = [(key, str(value)) for key, value in report.user_properties]
        if report.skipped and isinstance(report.longrepr, tuple):
            figures.append(("why", report.longrepr[2].removeprefix("Skipped: ")))
        checks.append(Check(name, report.outcome, figures))


def pytest_sessionfinish() -> None:
    """Write the page, `gpu.md` or where GPU_PAGE says, if anything ran."""
    if any(check.outcome != "skipped" for check in checks):
        path = Path(os.environ.get("GPU_PAGE", "gpu.md"))
        path.write_text(written(checks, machine()))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests compute."""
    return torch.device("cpu" if ON_CPU else "cuda")


@pytest.fixture
def card(device: torch.device) -> None:
    """Skip what nothing but a card can show."""
    if device.type != "cuda":
        pytest.skip("only a CUDA device can show it")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """512 training and 32 test images of 36 px in 4 classes: two steps of `CARD` an epoch."""
    folder = tmp_path_factory.mktemp("card") / "shards"
    return make_dataset(folder, classes=4, size=36, samples={"train": 512, "test": 32}, samples_per_shard=128)
