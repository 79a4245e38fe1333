"""Fine-tuning strategies: counts, rates, and runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import load_newest
from pipeline.config import Finetune, Model
from pipeline.model.build import build_model, build_student
from pipeline.model.finetune import add_head_norm, freeze, frozen_modules, parameters_by_part, rate_scales
from pipeline.model.student import Student
from pipeline.update.optimizer import build_optimizer
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import metrics, summary, train_here
from tests.tiny import HERE, TINY


def trained(name: str, classes: int = 10, **settings: object) -> int:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=classes)
    freeze(net, Finetune(**settings))  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("strategy", "parameters"),
    [
        ("linear", 1_930), ("partial-1/2", 297_802), ("partial-0.5", 297_802), ("partial-1", 446_794),
        ("partial-2", 891_658), ("partial-4", 1_781_386), ("partial-6", 2_671_114), ("partial-12", 5_340_298),
        ("full", 5_526_346), ("gradual", 5_526_346),
    ],
)  # fmt: skip
def test_strategies_train_the_parameters_of_the_tutorial_and_the_papers(strategy: str, parameters: int) -> None:
    assert trained("vit_tiny_patch16_224", strategy=strategy) == parameters


def test_the_final_norm_can_be_trained_too() -> None:
    # the definition of Visual Prompt Tuning, 2203.12119
    assert trained("vit_tiny_patch16_224", strategy="partial-1", norm=True) == 447_178


def test_attention_trains_attention_the_position_embeddings_and_the_head() -> None:
    assert trained("deit_base_patch16_224", 1000, strategy="attention") == 29_268_712  # as deit/main.py --attn-only
    # of a block of width 192: qkv and projection with their biases
    attention = 12 * (192 * 576 + 576 + 192 * 192 + 192)
    assert trained("vit_tiny_patch16_224", strategy="attention") == attention + 197 * 192 + 1_930


def test_position_embeddings_that_a_model_keeps_fixed_stay_so() -> None:
    assert trained("vit_small_plain", strategy="attention") == 12 * (384 * 1152 + 1152 + 384 * 384 + 384) + 3_850


@pytest.mark.parametrize("strategy", ["partial-13", "partial-0", "partial-1/3", "partial-1/0", "partial-1.2.3"])
def test_a_number_of_blocks_that_the_model_does_not_have_is_refused(strategy: str) -> None:
    with pytest.raises(BadRequest, match=f"--finetune.strategy {strategy} does not fit VisionTransformer"):
        trained("vit_tiny_patch16_224", strategy=strategy)


def test_partial_is_for_models_of_blocks_and_linear_for_all() -> None:
    with pytest.raises(BadRequest, match="does not fit ResNet"):
        trained("resnet50", strategy="partial-1")
    assert trained("resnet50", strategy="linear") == 20_490


@pytest.mark.parametrize("name", ["vgg16_bn", "torchvision:vgg16_bn"])
def test_the_classifier_of_a_vgg_is_its_three_last_layers_with_a_new_last_one(name: str) -> None:
    # 25,088 features to 4,096 twice, and 417,894 parameters of the new layer (papers.md 5.3)
    layers = (25_088 * 4_096 + 4_096) + (4_096 * 4_096 + 4_096) + 417_894
    with torch.device("meta"):
        net = build_model(Model(name=name), 102, seed=0)
    freeze(net, Finetune(strategy="classifier"))
    assert sum(some for some, _ in parameters_by_part(net).values()) == layers
    assert parameters_by_part(net)["features"][0] == 0
    assert sum(total for _, total in parameters_by_part(net).values()) == 134_686_886


def test_the_classifier_of_a_single_layer_is_the_head() -> None:
    assert trained("resnet50", strategy="classifier") == trained("resnet50", strategy="linear") == 20_490


@pytest.mark.parametrize("name", ["resnet50", "resnet152"])
def test_resnet_rates_are_those_of_the_guide(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=102)
    scales = rate_scales(net, Finetune(rates="divided", decay=3))
    rates = {name.partition(".")[0]: 1e-4 * scale for name, scale in scales.items()}
    assert rates == pytest.approx(
        {"fc": 1e-4, "layer4": 3.33e-5, "layer3": 1.11e-5, "layer2": 3.70e-6, "layer1": 1.23e-6, "bn1": 4.12e-7,
         "conv1": 1.37e-7}, rel=5e-3)  # fmt: skip


def test_vgg_rates_are_those_of_the_guide() -> None:
    with torch.device("meta"):
        net = timm.create_model("vgg16_bn", num_classes=102)
    scales = rate_scales(net, Finetune(rates="linear", decay=1e-3))
    assert len(net.features) == 44
    assert 1e-4 * scales["features.41.weight"] == pytest.approx(1e-4 - 3 * 2.27e-6, rel=1e-4)
    assert 1e-4 * scales["features.0.weight"] == pytest.approx(1e-7)
    assert scales["head.fc.weight"] == scales["pre_logits.fc1.weight"] == 1


def test_rates_for_layers_that_the_model_does_not_have_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"--finetune\.rates linear does not fit VisionTransformer"):
        train_here(dataset, tmp_path / "run", replace(HERE, finetune=Finetune(rates="linear", decay=0.1)))


def test_rates_of_a_vit_fall_by_block() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224")
    scales = rate_scales(net, Finetune(rates="geometric", decay=0.75))
    assert scales["head.weight"] == 1
    assert scales["blocks.11.attn.qkv.weight"] == 0.75
    assert scales["blocks.0.mlp.fc1.weight"] == pytest.approx(0.75**12)
    assert scales["pos_embed"] == scales["patch_embed.proj.weight"] == pytest.approx(0.75**13)


def test_what_is_not_trained_costs_no_gradient_no_moments_and_is_in_evaluation_mode() -> None:
    net = build_model(replace(TINY.model, drop_path=0.9), 4, seed=0)
    freeze(net, Finetune(strategy="partial-1"))
    student = Student(net).train()
    assert [module.training for module in net.blocks] == [False, True]
    assert not any(module.training for module in net.blocks[0].modules())
    student(torch.zeros(2, 3, 16, 16), torch.arange(2)).sum().backward()
    assert {name.partition(".")[0] for name, p in net.named_parameters() if p.grad is not None} == {"blocks", "head"}
    groups = build_optimizer(net, TINY, rate_scales(net, Finetune())).param_groups
    held = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert held == sum(some for some, _ in parameters_by_part(net).values())
    assert net.blocks[0] in frozen_modules(net)


@pytest.mark.slow
def test_a_run_changes_what_is_trained_alone(dataset: Dataset, tmp_path: Path) -> None:
    train_here(dataset, tmp_path, replace(HERE, finetune=Finetune(strategy="linear")), max_steps=3)
    start = build_model(TINY.model, 4, TINY.seed).state_dict()
    end = load_file(tmp_path / "model.safetensors")
    assert {name for name in start if not torch.equal(start[name], end[name])} == {"head.weight", "head.bias"}
    moments = load_file(tmp_path / "checkpoints" / "step-00000003" / "optimizer.safetensors")
    assert {name.partition("/")[2] for name in moments} == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_frozen_batch_norm_keeps_its_statistics(dataset: Dataset, tmp_path: Path) -> None:
    cnn = replace(HERE, model=Model(name="resnet20_cifar", img_size=16), finetune=Finetune(strategy="linear"))
    train_here(dataset, tmp_path, cnn, max_steps=2)
    end = load_file(tmp_path / "model.safetensors")
    assert torch.equal(end["bn1.running_mean"], torch.zeros(16))
    assert end["bn1.num_batches_tracked"] == 0


@pytest.mark.slow
def test_gradual_trains_the_head_and_then_all_and_may_be_stopped_anywhere(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, finetune=Finetune(strategy="gradual", head_epochs=1, head_lr=0.02), epochs=3)
    steps = 70 // 12
    train_here(dataset, tmp_path / "unbroken", recipe)
    for last in (2, steps, steps + 3, 0):
        train_here(dataset, tmp_path / "parts", recipe, max_steps=last)
        if last == steps:
            end, start = load_file(tmp_path / "parts" / "model.safetensors"), build_model(TINY.model, 4, 0).state_dict()
            assert {name for name in start if not torch.equal(start[name], end[name])} == {"head.weight", "head.bias"}
    assert summary(tmp_path / "unbroken")["steps"] == 3 * steps
    hashes = [summary(tmp_path / name)["weights_sha256"] for name in ("unbroken", "parts")]
    assert hashes[0] == hashes[1]
    lines = metrics(tmp_path / "unbroken", "train")
    assert [line["step"] for line in lines] == list(range(1, 3 * steps + 1))
    assert [line["lr"] for line in lines[:steps]] == [0.02] * steps
    assert lines[steps]["lr"] == pytest.approx(1e-6)  # the second phase warms up by itself
    # and its optimizer is a new one: all that it trains it has trained since the switch
    moments = load_file(tmp_path / "parts" / "checkpoints" / f"step-{3 * steps:08d}" / "optimizer.safetensors")
    counts = {int(value) for name, value in moments.items() if name.startswith("step/")}
    assert counts == {2 * steps}


@pytest.mark.slow
def test_a_norm_before_the_head_is_folded_into_what_timm_loads(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, finetune=Finetune(strategy="linear", head_norm=True))
    train_here(dataset, tmp_path, recipe, max_steps=5)
    snapshot = load_newest(tmp_path / "checkpoints", print)
    assert snapshot
    net = build_student(recipe)
    net.load_state_dict(snapshot.tensors["model"])
    assert not torch.equal(net.head.norm.running_mean, torch.zeros(net.head.in_features))
    images = torch.randn(4, 3, recipe.model.img_size, recipe.model.img_size)
    exported = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    torch.testing.assert_close(exported.eval()(images), net.eval()(images), rtol=1e-4, atol=1e-5)
    assert summary(tmp_path)["trained_parameters"] == net.head.weight.numel() + net.head.bias.numel()


def test_a_normed_head_starts_as_the_head_it_replaces() -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    head = net.head
    add_head_norm(net)
    features = torch.randn(50, 192) * 3 + 2
    normed = (features - features.mean(0)) / features.var(0, unbiased=False).add(1e-6).sqrt()
    torch.testing.assert_close(net.head(features), head(normed), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in net.head.named_parameters()] == ["weight", "bias"]


def test_fields_that_do_not_go_together_are_named(dataset: Dataset, tmp_path: Path) -> None:
    for changes, message in (
        ({"strategy": "half"}, "is none of full, linear, classifier, partial-K"),
        ({"strategy": "gradual"}, "go together"),
        ({"head_epochs": 1.0}, "go together"),
        ({"strategy": "gradual", "head_epochs": 9.0}, "longer than --epochs"),
    ):
        with pytest.raises(BadRequest, match=message):
            train_here(dataset, tmp_path / "run", replace(HERE, finetune=Finetune(**changes)))  # type: ignore[arg-type]
