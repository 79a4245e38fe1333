"""Models give the logits of the implementations that their recipes follow."""

from typing import Any, Final

import pytest
import torch
from torch import Tensor

from pipeline.config import Model
from pipeline.model.build import build_model, parameter_count
from pipeline.model.student import heads
from recipes import vit_cifar10_small
from tests.reference import inputs

MODELS: Final = inputs.read("models")
OURS: Final = {
    "vit_pytorch_tutorial": vit_cifar10_small.RECIPE.model,
    "big_vision_vit_s16": Model(name="vit_small_plain"),
    "big_vision_vit_s16_mlp_head": Model(name="vit_small_plain_mlp_head"),
}


def assert_logits(logits: Tensor, expected: dict[str, Any]) -> None:
    first = torch.tensor(expected["first_16_of_each_image"])
    torch.testing.assert_close(logits[:, : first.shape[1]], first, rtol=0, atol=1e-5)
    assert logits.double().sum(1).tolist() == pytest.approx(expected["sum"], rel=0, abs=1e-4)
    assert logits.double().norm(dim=1).tolist() == pytest.approx(expected["l2"], rel=0, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_official_model(name: str) -> None:
    expected = MODELS[name]
    settings = expected["settings"]
    model = OURS.get(name) or Model(name=settings.get("timm_name", name))
    net: Any = build_model(model, settings["classes"], seed=0).eval()
    filled = inputs.fill(net, settings.get("gamma"))
    assert filled == pytest.approx({key: expected["fill"][key] for key in filled}, rel=1e-6)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected["parameters"]
    images = inputs.images(2, settings["size"])
    assert_logits(net(images), expected["logits"])
    if "head" in expected:
        net.set_distilled_training(True)
        for logits, head in zip(heads(net, images), ("head", "head_dist"), strict=True):
            assert_logits(logits, expected[head])
    if "logits_batch_statistics" in expected:
        assert_logits(net.train()(images), expected["logits_batch_statistics"])


def test_the_position_table_of_the_plain_vit_is_big_visions() -> None:
    table = build_model(Model(name="vit_small_plain", depth=1), 10, seed=0).pos_embed[0]
    expected = MODELS["big_vision_vit_s16"]["position_table"]
    assert list(table.shape) == expected["shape"]
    columns = [0, 95, 96, 191, 192, 287, 288, 383]
    assert table[17, columns].tolist() == pytest.approx(
        expected["token_17_columns_0_95_96_191_192_287_288_383"], abs=1e-6
    )
    assert table.double().sum().item() == pytest.approx(expected["sum"], rel=1e-6)
    assert table.double().norm().item() == pytest.approx(expected["l2"], rel=1e-6)


def test_the_plain_vits_differ_by_the_layer_before_the_head() -> None:
    linear, mlp = (
        parameter_count(build_model(Model(name=f"vit_small_plain{head}", depth=1), 10, seed=0))
        for head in ("", "_mlp_head")
    )
    assert mlp - linear == 384 * 384 + 384
