"""torchvision's networks as students."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from pipeline.config import Distill, Finetune, Model
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, resolve
from pipeline.model import torchvision_nets
from pipeline.model.build import build_model, parameter_count, unknown_model
from pipeline.model.start import trained_with
from pipeline.model.student import Student
from pipeline.request import Request
from pipeline.teacher.teacher import build_teacher, check_teacher
from pipeline.update.optimizer import build_optimizer
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import summary, train_here
from tests.tiny import HERE, TINY


def small(name: str, **options: Any) -> Model:
    """Return a network's settings at 32 px."""
    return Model(name=f"torchvision:{name}", img_size=32, **options)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """Publish state dicts, by a part of their URL, and fetch nothing."""
    published: dict[str, dict[str, torch.Tensor]] = {}

    def fetch(url: str, *, progress: bool, check_hash: bool, weights_only: bool) -> dict[str, torch.Tensor]:
        assert check_hash
        assert weights_only  # nothing in it is executed
        return dict(next(tensors for name, tensors in published.items() if name in url))

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return published


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_nets.names())
def test_every_network_can_be_built_without_memory_and_has_a_head_of_its_own(name: str) -> None:
    with torch.device("meta"):
        ten, two = (build_model(Model(name=name), classes, seed=0) for classes in (10, 2))
        head = ten.get_submodule(ten.pretrained_cfg["classifier"])
        assert head.weight.shape[:2] == (10, ten.num_features)
        assert parameter_count(ten) - parameter_count(two) == 8 * (ten.num_features + (head.bias is not None))
        assert all(parameter.is_meta for parameter in ten.state_dict().values())


def test_there_are_the_networks_that_timm_has_not() -> None:
    known = torchvision_nets.names()
    assert len(known) == 76  # of 80: MNASNets are not among them
    for name in ("torchvision:vgg16_bn", "torchvision:regnet_y_400mf", "torchvision:alexnet"):
        assert not list(unknown_model("model.name", name))
    (problem,) = unknown_model("model.name", "torchvision:vgg16_nb")
    assert "torchvision:vgg16_bn" in problem.sentence


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build_model(small("shufflenet_v2_x0_5"), 4, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_published_weights_come_with_a_new_head_for_other_classes(files: dict[str, Any]) -> None:
    own = torchvision.models.squeezenet1_1(num_classes=1000).state_dict()
    files["squeezenet1_1"] = own
    net = build_model(small("squeezenet1_1", pretrained=True), 4, seed=0).state_dict()
    same = {name for name in net if net[name].shape == own[name].shape and torch.equal(net[name], own[name])}
    assert net.keys() - same == {"classifier.1.weight", "classifier.1.bias"}
    whole = build_model(small("squeezenet1_1", pretrained=True), 1000, seed=0).state_dict()
    assert all(torch.equal(whole[name], own[name]) for name in own)


def test_published_weights_are_found_under_the_names_of_their_files(files: dict[str, Any]) -> None:
    dense = torchvision.models.densenet121(num_classes=1000).state_dict()
    files["densenet121"] = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for name, value in dense.items()
    }
    net = build_model(small("densenet121", pretrained=True), 1000, seed=0).state_dict()
    assert all(torch.equal(net[name], dense[name]) for name in dense)


def test_position_embeddings_of_published_weights_are_resized(files: dict[str, Any]) -> None:
    files["vit_b_32"] = torchvision.models.vit_b_32().state_dict()
    net = build_model(small("vit_b_32", pretrained=True), 4, seed=0)
    assert net.encoder.pos_embedding.shape == (1, 2, 768)
    groups = build_optimizer(net, TINY, dict.fromkeys(dict(net.named_parameters()), 1.0)).param_groups
    undecayed = {id(value) for group in groups if not group["weight_decay"] for value in group["params"]}
    assert id(net.class_token) in undecayed
    assert id(net.encoder.pos_embedding) in undecayed


def test_the_input_is_normalised_as_published_weights_were_trained() -> None:
    assert trained_with(small("vgg16_bn", pretrained=True)).interpolation == "bilinear"
    assert trained_with(small("efficientnet_v2_l", pretrained=True)).mean == (0.5, 0.5, 0.5)
    assert trained_with(small("vgg16_bn")).mean is None


def test_a_job_says_whose_weights_it_starts_from() -> None:
    recipe = replace(TINY, model=small("shufflenet_v2_x0_5", pretrained=True))
    assert resolve(Request(recipe=recipe), REHEARSAL, Hosting()).start == (
        "published by torchvision for torchvision:shufflenet_v2_x0_5; mean 0.485 0.456 0.406, std 0.229 0.224 0.225 as "
        "they were trained; trained on bilinear images, which are bicubic here"
    )


def test_stochastic_depth_rises_to_the_recipes_rate() -> None:
    student = Student(build_model(small("efficientnet_b0", drop_path=0.3), 4, seed=0))
    assert student.drop_rates.max().item() == pytest.approx(0.3, abs=1e-6)
    assert student.drop_rates.tolist() == sorted(student.drop_rates.tolist())
    assert not Student(build_model(small("efficientnet_b0"), 4, seed=0)).drop_paths
    with pytest.raises(BadRequest, match=r"has no stochastic depth, --model.drop-path 0.3"):
        build_model(small("resnet18", drop_path=0.3), 4, seed=0)


def test_what_only_timms_models_take_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"as torchvision builds it, without embed_dim, depth"):
        build_model(small("vit_b_16", width=32, depth=2), 4, seed=0)


@pytest.mark.slow
def test_a_run_can_be_stopped_and_its_weights_are_torchvisions_and_teach(dataset: Dataset, tmp_path: Path) -> None:
    model = replace(small("mobilenet_v3_small", dropout=0.2), mean=HERE.model.mean, std=HERE.model.std)
    recipe = replace(HERE, model=model, epochs=1, finetune=Finetune(strategy="classifier"))
    train_here(dataset, tmp_path / "whole", recipe)
    for last in (2, 0):
        train_here(dataset, tmp_path / "parts", recipe, max_steps=last)
    hashes = [summary(tmp_path / name)["weights_sha256"] for name in ("whole", "parts")]
    assert hashes[0] == hashes[1]
    net = torchvision.models.mobilenet_v3_small(num_classes=4)
    net.load_state_dict(load_file(tmp_path / "whole" / "model.safetensors"))
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["architecture"] == "torchvision:mobilenet_v3_small"
    taught = replace(TINY, distill=Distill(teacher=f"local-dir:{tmp_path / 'whole'}"))
    assert check_teacher(taught) == ""
    teacher = build_teacher(taught)
    assert teacher.size == 32
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), net.eval()(images), rtol=1e-4, atol=1e-5)
