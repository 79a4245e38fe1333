"""Models start with weights of the laws that the official ones start with."""

import re
from collections import defaultdict
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from pipeline.config import Model
from pipeline.model.build import build_model
from recipes import deit3_small, deit_small, deit_small_distilled, vit_small_plain_90ep, vitc_4gf, vitp_4gf
from tests.reference import inputs

MODELS: Final = {
    "deit_small": deit_small.RECIPE.model,
    "deit_small_distilled": deit_small_distilled.RECIPE.model,
    "deit3_small": deit3_small.RECIPE.model,
    "vitc_4gf": vitc_4gf.RECIPE.model,
    "vitp_4gf": vitp_4gf.RECIPE.model,
    "big_vision_vit_s16": vit_small_plain_90ep.RECIPE.model,
}
FILE: Final = inputs.read("init")
BOUNDED: Final = 2.5  # deviations: a law whose largest value lies below has a bound


def by_kind(net: torch.nn.Module) -> dict[str, Tensor]:
    """Return the weights that one law makes, over all blocks, by their name in init.json."""
    kinds: dict[str, list[Tensor]] = defaultdict(list)
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    for name, tensor in net.state_dict().items():
        if name in fixed or name.endswith("num_batches_tracked"):
            continue
        kind = re.sub(r"^blocks\.\d+", "blocks.*", name).replace("representation", "pre_logits")
        kind = re.sub(r"\.ls\d\.", ".ls.", kind)
        if ".qkv." in kind:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                kinds[kind.replace("qkv", part)].append(third.flatten())
        else:
            kinds[kind].append(tensor.flatten())
    return {kind: torch.cat(parts).double() for kind, parts in kinds.items()}


@pytest.mark.parametrize(("name", "model"), MODELS.items())
def test_initial_weights_have_the_official_laws(name: str, model: Model) -> None:
    found = by_kind(build_model(model, 1000, seed=0))
    expected: dict[str, Any] = FILE["models"][name]
    assert found.keys() == expected.keys()
    wrong = {}
    for kind, values in found.items():
        count, mean, _, deviation, largest = expected[kind]
        assert len(values) * FILE["seeds"] == count, kind
        if not deviation:
            fits = bool((values == torch.tensor(mean).float().double()).all())
        else:
            error = deviation / len(values) ** 0.5
            fits = abs(values.mean()) < 5 * error and abs(values.std() - deviation) < 5 * error + 0.002 * deviation
            if largest < BOUNDED * deviation:
                fits &= values.abs().max().item() == pytest.approx(largest, rel=0.02)
        if not fits:
            wrong[kind] = values.mean().item(), values.std().item(), values.abs().max().item(), expected[kind]
    assert not wrong
