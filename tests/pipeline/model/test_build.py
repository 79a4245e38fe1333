from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from pipeline.config import Model
from pipeline.model.build import build_model, on_meta, parameter_count
from pipeline.model.finetune import rate_scales
from pipeline.model.student import Student
from pipeline.randomness import view_keys
from pipeline.session.rehearsal import forward_flops
from pipeline.update.optimizer import build_optimizer
from recipes import deit_base, deit_small, deit_tiny, vit_cifar10_small
from shards.errors import BadRequest
from tests.tiny import TINY

KEYS = torch.from_numpy(view_keys(0, 0, np.arange(6), np.zeros(6, dtype=np.int64)))
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [(deit_tiny.RECIPE, 5_717_416), (deit_small.RECIPE, 22_050_664), (deit_base.RECIPE, 86_567_656)],
)
def test_parameters_are_those_of_the_paper(recipe: object, parameters: int) -> None:
    assert parameter_count(on_meta(recipe)) == parameters  # type: ignore[arg-type]


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


def test_the_vit_of_vit_pytorch_has_its_parameters_and_its_start() -> None:
    net = build_model(vit_cifar10_small.RECIPE.model, 10, seed=0)
    assert parameter_count(net) == 425_482
    assert 0.9 < net.pos_embed.std() < 1.1
    images = torch.rand(2, 3, 32, 32)
    # its own words: einops' 'b c (h p) (w q) -> b (h w) (p q c)', with c outermost as in the convolution's weights
    patches = images.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 192)
    embed = net.patch_embed
    expected = embed.norm(embed.pixel_norm(patches) @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    torch.testing.assert_close(embed(images), expected)


def test_a_convolutional_stem_takes_any_image_its_strides_divide() -> None:
    for size, patch in ((224, 16), (32, 4), (48, 8), (320, 16)):
        settings = Model(name="vitc_1gf", img_size=size, patch_size=patch, width=64, depth=1, heads=2)
        net = build_model(settings, 7, seed=0).eval()
        assert net(torch.zeros(1, 3, size, size)).shape == (1, 7)
    with pytest.raises(BadRequest, match="do not take patches of 4 in images of 32 px"):
        build_model(Model(name="vitc_18gf", img_size=32, patch_size=4), 7, seed=0)


def test_the_flops_of_deit_small_are_those_of_the_papers() -> None:
    # 4.6 G multiply-adds: DeiT issue tracker and timm's tables; one of them is two operations
    assert forward_flops(deit_small.RECIPE) / 2e9 == pytest.approx(4.6, abs=0.05)


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


def test_stochastic_depth_of_a_view_does_not_depend_on_its_batch() -> None:
    student = Student(build_model(replace(TINY.model, drop_path=0.9), 4, seed=0)).train()
    whole = student(IMAGES, KEYS)
    halves = torch.cat([student(IMAGES[:4], KEYS[:4]), student(IMAGES[4:], KEYS[4:])], 1)
    assert torch.allclose(whole, halves, atol=1e-6)
    assert not torch.allclose(whole, student(IMAGES, KEYS.flip(0)), atol=1e-3)


def test_paths_are_dropped_at_their_rates_and_kept_ones_scaled() -> None:
    student = Student(build_model(replace(TINY.model, depth=4, drop_path=0.6), 4, seed=0)).train()
    keys = torch.from_numpy(view_keys(0, 0, np.arange(5000), np.zeros(5000, dtype=np.int64)))
    student.net.forward = lambda images: images  # the masks alone
    student(torch.zeros(5000, 1, 1, 1), keys)
    rates = [module.drop_prob for module in student.drop_paths]
    assert rates == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6])
    for module, rate in zip(student.drop_paths, rates, strict=True):
        assert module.scale is not None
        assert (module.scale == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
        assert module.scale.max().item() == pytest.approx(1 / (1 - rate))


def test_in_eval_mode_the_student_is_the_timm_model() -> None:
    net = build_model(TINY.model, 4, seed=0).eval()
    plain = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=16, patch_size=8, embed_dim=32, depth=2,
                              num_heads=2).eval()  # fmt: skip
    plain.load_state_dict(net.state_dict())
    # in the same layout: another one is another order of additions
    expected = plain(IMAGES.contiguous(memory_format=torch.channels_last))
    assert torch.equal(Student(net).eval()(IMAGES, KEYS)[0], expected)


def test_weight_decay_skips_biases_norms_tokens_and_positions() -> None:
    net = build_model(Model(name="deit_tiny_distilled_patch16_224", img_size=32), 4, seed=0)
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = build_optimizer(net, TINY, rate_scales(net, TINY.finetune)).param_groups
    skipped = {names[parameter] for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "blocks.0.norm1.weight"} <= skipped
    assert all(name.endswith(("bias", "token", "pos_embed")) or "norm" in name for name in skipped)


def test_a_model_that_does_not_take_a_setting_says_so() -> None:
    with pytest.raises(BadRequest, match="resnet18 does not take these settings"):
        build_model(Model(name="resnet18", patch_size=4), 4, seed=0)
