"""Stochastic depth has the rates of the official models, in each block."""

from typing import Any, Final

import pytest
from timm.layers import DropPath

from pipeline.config import Recipe
from pipeline.model.build import on_meta
from recipes import deit3_base, deit3_small, deit_base, deit_small, deit_small_distilled, deit_tiny
from tests.reference import inputs

RECIPES: Final = {
    "deit_tiny_0.1": deit_tiny.RECIPE,
    "deit_small_0.1": deit_small.RECIPE,
    "deit_base_0.1": deit_base.RECIPE,
    "deit_small_distilled_0.1": deit_small_distilled.RECIPE,
    "deit3_small_0.05": deit3_small.RECIPE,
    "deit3_base_0.2": deit3_base.RECIPE,
}
RATES: Final = inputs.read("droppath")


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items())
def test_the_recipes_rates_are_the_official_ones(name: str, recipe: Recipe) -> None:
    net: Any = on_meta(recipe)
    sites = [[m.drop_prob for m in block.modules() if isinstance(m, DropPath)] for block in net.blocks]
    # a path that is never dropped has no module
    assert {len(of_block) for of_block in sites} <= {0, RATES[name]["sites_per_block"]}
    assert [max(of_block, default=0.0) for of_block in sites] == pytest.approx(RATES[name]["by_block"], abs=1e-8)
    assert [min(of_block, default=0.0) for of_block in sites] == pytest.approx(RATES[name]["by_block"], abs=1e-8)


def test_every_model_of_the_file_has_a_recipe() -> None:
    assert RECIPES.keys() == RATES.keys()
