"""Stochastic depth by view, and the heads of a student."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from pipeline.config import Distill, Model
from pipeline.model.build import build_model, build_student
from pipeline.model.student import KeyedDropout, Student, fuse, heads, kept_values
from pipeline.randomness import view_keys
from shards.errors import BadRequest
from tests.tiny import TINY

RNG = np.random.default_rng(0)


LABEL_LOGITS, TAUGHT_LOGITS, TEACHER = (RNG.normal(size=(6, 7)) * 3 for _ in range(3))


TWO = torch.from_numpy(np.stack([LABEL_LOGITS, TAUGHT_LOGITS]))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


KEYS = torch.from_numpy(view_keys(0, 0, np.arange(6), np.zeros(6, dtype=np.int64)))


IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_fusion_is_the_papers_or_the_codes() -> None:
    paper = (softmax(LABEL_LOGITS) + softmax(TAUGHT_LOGITS)) / 2
    np.testing.assert_allclose(softmax(fuse(TWO, "paper").numpy()), paper, atol=1e-12)
    np.testing.assert_allclose(fuse(TWO, "code"), (LABEL_LOGITS + TAUGHT_LOGITS) / 2)
    assert torch.equal(fuse(TWO[:1], "paper"), TWO[0])


def test_a_student_with_a_token_answers_with_two_heads_in_both_modes() -> None:
    recipe = replace(
        TINY, model=replace(TINY.model, name="deit_tiny_distilled_patch16_224"), distill=Distill(teacher="resnet18")
    )
    net = build_student(recipe)
    images, keys = torch.randn(3, 3, 16, 16), torch.arange(3)
    student = Student(net)
    assert student.train()(images, keys).shape == (2, 3, 4)
    student.eval()
    two = heads(net, images)
    torch.testing.assert_close(two.mean(0), net(images))  # what timm's own model does in evaluation
    assert heads(build_student(TINY).eval(), images).shape == (1, 3, 4)


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


DROPPED = replace(TINY.model, drop_path=0.0, dropout=0.4)


def test_dropout_of_a_view_does_not_depend_on_its_batch_nor_on_the_global_generator() -> None:
    student = Student(build_model(DROPPED, 4, seed=0)).train()
    whole = student(IMAGES, KEYS)
    torch.manual_seed(1)
    parts = torch.cat([student(IMAGES[part], KEYS[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))], 1)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert not torch.allclose(whole, student(IMAGES, KEYS.flip(0)), atol=1e-3)
    assert not torch.allclose(whole, student.eval()(IMAGES, KEYS), atol=1e-3)


def test_dropout_is_where_deits_is() -> None:
    # timm 0.3.2, models/vision_transformer.py: after the positions, the projection, and each layer of the MLP
    student = Student(build_model(DROPPED, 4, seed=0))
    expected = {"pos_drop"} | {f"blocks.{block}.{place}" for block in (0, 1)
                               for place in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")}  # fmt: skip
    assert {name for name, module in student.net.named_modules() if isinstance(module, KeyedDropout)} == expected
    assert not Student(build_model(TINY.model, 4, seed=0)).dropouts


def test_dropout_zeroes_its_share_of_values_anew_in_each_layer_and_scales_the_others() -> None:
    student = Student(build_model(DROPPED, 4, seed=0)).train()
    student(IMAGES, KEYS)
    first, second = (layer(torch.ones(6, 5, 2000)) for layer in student.dropouts[:2])
    for values in (first, second):
        assert values.unique().tolist() == pytest.approx([0, 1 / 0.6])
        # 10,000 draws a view: five standard errors
        assert (values == 0).float().mean((1, 2)).numpy() == pytest.approx(0.4, abs=0.025)
    assert (first == second).float().mean().item() == pytest.approx(0.4**2 + 0.6**2, abs=0.01)
    assert (first[0] == first[1]).float().mean().item() == pytest.approx(0.4**2 + 0.6**2, abs=0.025)
    half = student.dropouts[0](torch.ones(12, 5, 1000))  # as windows of an image, one after the other
    assert torch.equal(half.view(6, 2, 5, 1000).flatten(1), first.flatten(1))


def test_what_is_dropped_of_a_view_stays_the_same_for_good() -> None:
    # of runs that go on, as the goldens are of what else is drawn
    kept = ["".join(str(int(value)) for value in of_view) for of_view in kept_values(KEYS[:3], 0.4, 16)]
    assert kept == ["1101110110101001", "1000100111010100", "1100100111111011"]


@pytest.mark.parametrize("name", ["vgg11_bn", "torchvision:vgg11_bn"])
def test_a_vgg_drops_before_its_second_and_its_third_layer(name: str) -> None:
    with torch.device("meta"):
        net = build_model(Model(name=name, dropout=0.5), 4, seed=0)
        assert [dropout.rate for dropout in Student(net).dropouts] == [0.5, 0.5]
        assert not Student(build_model(Model(name=name), 4, seed=0)).dropouts  # torchvision's own are 0.5


def test_a_network_drops_nothing_that_the_recipe_does_not_say() -> None:
    with torch.device("meta"):
        for name in ("swin_tiny_patch4_window7_224", "ghostnet_100", "torchvision:convnext_tiny"):
            net = build_model(Model(name=name), 4, seed=0)
            student = Student(net)
            assert not any(path.drop_prob for path in student.drop_paths)
            assert not student.dropouts
            assert not getattr(net, "drop_rate", 0.0)


def test_a_network_without_layers_of_dropout_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"--model.dropout 0.1: resnet18 has no layers of dropout"):
        build_model(Model(name="resnet18", dropout=0.1), 4, seed=0)


def test_in_eval_mode_the_student_is_the_timm_model() -> None:
    net = build_model(TINY.model, 4, seed=0).eval()
    plain = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=16, patch_size=8, embed_dim=32, depth=2,
                              num_heads=2).eval()  # fmt: skip
    plain.load_state_dict(net.state_dict())
    # in the same layout: another one is another order of additions
    expected = plain(IMAGES.contiguous(memory_format=torch.channels_last))
    assert torch.equal(Student(net).eval()(IMAGES, KEYS)[0], expected)
