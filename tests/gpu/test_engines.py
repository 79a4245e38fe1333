"""Every engine trains on one card as DDP does and, where there are two, on two."""

from pathlib import Path

import pytest
import torch

from shards.dataset import Dataset
from tests.gpu.comparing import Property, apart, losses
from tests.gpu.conftest import ON_CPU
from tests.running import PROGRAMS, run

ENGINES = ("ddp", "fsdp2", "zero2")


@pytest.fixture(scope="module")
def of_one(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    on_cards(folder, dataset, 1)
    return folder


def on_cards(folder: Path, dataset: Dataset, cards: int) -> None:
    """Train three steps under each engine, and three more from the first one's checkpoint."""
    said = ("matrix", folder, dataset.folder, 3, 6, f"ddp-{cards}", *ENGINES)
    run(
        PROGRAMS / "group.py",
        cards,
        PROGRAMS / "engines.py",
        *said,
        env={"ACCELERATE_USE_CPU": "true" if ON_CPU else "false"},
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_on_one_card(engine: str, of_one: Path, record_property: Property) -> None:
    worst = max(apart(losses(of_one / f"{engine}-1{part}"), losses(of_one / f"ddp-1{part}")) for part in ("", "-on"))
    record_property("largest relative difference of its losses from DDP's", f"{worst:.1e}")
    assert worst < 1e-3


def test_engines_train_on_two_cards(
    card: None, dataset: Dataset, of_one: Path, tmp_path: Path, record_property: Property
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    on_cards(tmp_path, dataset, 2)
    for engine in ENGINES:
        worst = apart(losses(tmp_path / f"{engine}-2"), losses(of_one / "ddp-1"))
        record_property(f"{engine}: largest relative difference of its losses from one card's", f"{worst:.1e}")
        assert worst < 1e-3
