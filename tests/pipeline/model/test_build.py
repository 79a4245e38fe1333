from dataclasses import replace

import pytest
import timm
import torch

from pipeline.config import Distill, Model
from pipeline.model.build import build_model, build_student, on_meta, parameter_count, unknown_model
from recipes import deit_base, deit_small, deit_tiny
from shards.errors import BadRequest
from tests.tiny import TINY


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [(deit_tiny.RECIPE, 5_717_416), (deit_small.RECIPE, 22_050_664), (deit_base.RECIPE, 86_567_656)],
)
def test_parameters_are_those_of_the_paper(recipe: object, parameters: int) -> None:
    assert parameter_count(on_meta(recipe)) == parameters  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        Model(name="deit_tiny_distilled_patch16_224", img_size=64),
        Model(name="deit_small_patch16_224", img_size=48, patch_size=8),
        Model(name="vit_tiny_patch16_224", img_size=384),
        Model(name="deit_tiny_distilled_patch16_224", img_size=32, patch_size=4, width=48, depth=2, heads=3),
    ],
)
def test_models_take_any_image_and_patch_size(settings: Model) -> None:
    net = build_model(settings, 7, seed=0).eval()
    assert net(torch.zeros(1, 3, settings.img_size, settings.img_size)).shape == (1, 7)


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(TINY.model, 4, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = (build_model(TINY.model, 4, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_tag_that_a_model_does_not_have_is_named_with_those_that_it_has() -> None:
    (problem,) = unknown_model("model.name", "deit_tiny_patch16_224.in22k")
    assert problem.sentence.endswith("'deit_tiny_patch16_224.in22k' is not known; near: deit_tiny_patch16_224.fb_in1k.")
    for name in ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224", "vit_huge_patch14_224.untrained"):
        assert not list(unknown_model("model.name", name))


@pytest.mark.parametrize(
    "settings",
    [
        Model(name="resnet18", patch_size=4),
        Model(name="eva02_tiny_patch14_224", heads=5),  # whose tensors do not go together
        Model(name="eva02_tiny_patch14_224", heads=5, pretrained=True, weights="a file"),
    ],
)
def test_a_model_that_does_not_take_a_setting_says_so(settings: Model) -> None:
    with pytest.raises(BadRequest, match=f"{settings.name} does not take these settings") as caught:
        build_model(settings, 4, seed=0)
    assert [problem.field for problem in caught.value.problems] == ["model.name"]


def test_published_weights_that_cannot_be_fetched_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **_: object) -> None:
        raise OSError("no way to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BadRequest, match="the weights of resnet18 cannot be had: no way to the hub") as caught:
        build_model(Model(name="resnet18", pretrained=True), 4, seed=0)
    assert [problem.field for problem in caught.value.problems] == ["model.pretrained"]


def test_stochastic_depth_of_a_network_without_blocks_is_not_made_uniform() -> None:
    with pytest.raises(BadRequest, match=r"--model\.drop-path-rule uniform is for ViTs, which resnet18 is not"):
        build_model(Model(name="resnet18", drop_path=0.1, drop_path_rule="uniform"), 4, seed=0)


def test_a_model_without_a_token_is_refused_and_so_is_an_idle_token() -> None:
    with pytest.raises(BadRequest, match="no distillation token"):
        build_student(replace(TINY, distill=Distill(teacher="resnet18")))
    with pytest.raises(BadRequest, match="nobody would teach"):
        build_student(replace(TINY, model=replace(TINY.model, name="deit_tiny_distilled_patch16_224"),
                              distill=Distill(teacher="resnet18", token=False)))  # fmt: skip
