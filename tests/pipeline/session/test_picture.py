"""The picture of what was learnt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pipeline.config import Finetune
from shards.dataset import Dataset
from tests.running import train_here
from tests.tiny import HERE


@pytest.mark.parametrize(
    ("finetune", "switches"),
    [(Finetune(), []), (Finetune(strategy="gradual", head_epochs=1), [1.0])],
    ids=["full", "gradual"],
)
def test_a_line_stands_where_gradual_fine_tuning_begins_to_train_all(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetune: Finetune, switches: list[float]
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    recipe = replace(HERE, finetune=finetune, epochs=2, eval=replace(HERE.eval, every_epochs=1))
    train_here(dataset, tmp_path, recipe)
    lines: list[Any] = list(drawn[-1].axes[1].lines)
    upright = [line for line in lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in upright] == switches
