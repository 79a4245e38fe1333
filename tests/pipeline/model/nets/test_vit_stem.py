"""ViT_P and ViT_C."""

from dataclasses import replace

import pytest
import torch

from pipeline.config import Model
from pipeline.model.build import build_model, on_meta, parameter_count
from recipes import deit_small
from shards.errors import BadRequest


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vitp_1gf", 4_830_376), ("vitp_4gf", 18_507_112), ("vitp_18gf", 86_567_656), ("vitp_36gf", 178_364_392),
        ("vitc_1gf", 4_567_936), ("vitc_4gf", 17_754_136), ("vitc_18gf", 81_573_160), ("vitc_36gf", 167_796_008),
    ],
)  # fmt: skip
def test_stems_have_the_parameters_of_early_convolutions(name: str, parameters: int) -> None:
    # 2106.14881, Table 1, counted exactly
    recipe = replace(deit_small.RECIPE, model=Model(name=name))
    assert parameter_count(on_meta(recipe)) == parameters


def test_a_convolutional_stem_takes_any_image_its_strides_divide() -> None:
    for size, patch in ((224, 16), (32, 4), (48, 8), (320, 16)):
        settings = Model(name="vitc_1gf", img_size=size, patch_size=patch, width=64, depth=1, heads=2)
        net = build_model(settings, 7, seed=0).eval()
        assert net(torch.zeros(1, 3, size, size)).shape == (1, 7)
    with pytest.raises(BadRequest, match="do not take patches of 4 in images of 32 px"):
        build_model(Model(name="vitc_18gf", img_size=32, patch_size=4), 7, seed=0)
