"""`vitrail models`."""

import json
import socket
from typing import Any

import pytest

from tests.running import vitrail


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a list of models fetches nothing")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def listed(*arguments: Any) -> dict[str, dict[str, Any]]:
    """Return what the verb says of models, by name."""
    return {model["name"]: model for model in json.loads(vitrail("models", *arguments, "--json").stdout)}


def test_models_of_all_libraries_are_listed_with_what_their_networks_tell() -> None:
    found = listed("vgg11_bn") | listed("deit_tiny*") | listed("vit?_1gf")
    assert {name: (model["library"], model["parameters"], model["size"], model["head"]) for name, model in
            found.items()} == {
        "vgg11_bn": ("timm", 132_868_840, 224, ["head.fc"]),
        "torchvision:vgg11_bn": ("torchvision", 132_868_840, 224, ["classifier.6"]),
        "deit_tiny_patch16_224": ("timm", 5_717_416, 224, ["head"]),  # papers.md 1.1
        "deit_tiny_distilled_patch16_224": ("timm", 5_910_800, 224, ["head", "head_dist"]),
        "vitc_1gf": ("vitrail", 4_567_936, 224, ["head"]),
        "vitp_1gf": ("vitrail", 4_830_376, 224, ["head"]),
    }  # fmt: skip
    assert found["deit_tiny_patch16_224"]["weights"] == ["fb_in1k"]
    assert found["deit_tiny_patch16_224"]["mean"] == [0.485, 0.456, 0.406]


def test_parameters_are_those_with_a_head_of_so_many_classes() -> None:
    found = listed("torchvision:vgg16_bn", "--classes", 102) | listed("torchvision:resnet50", "--classes", 102)
    assert found["torchvision:vgg16_bn"]["parameters"] == 134_686_886  # papers.md 5.3
    assert found["torchvision:resnet50"]["parameters"] == 23_717_030


def test_all_are_named_at_once_and_none_is_built() -> None:
    found = listed()
    assert sum(model["library"] == "torchvision" for model in found.values()) == 76
    assert sum(model["library"] == "timm" for model in found.values()) > 1_000
    assert {"resnet20_cifar", "vitc_4gf"} <= {name for name, model in found.items() if model["library"] == "vitrail"}
    assert not any(model["parameters"] for model in found.values())


def test_a_table_is_for_people_and_a_name_that_none_has_is_answered_with_those_near() -> None:
    said = vitrail("models", "deit_tiny_patch*").stdout
    assert all(words in said for words in ("5,717,416", "224 px", "head", "timm", "fb_in1k"))
    assert "deit_tiny_patch16_224" in "".join(line.split("│")[1].strip() for line in said.splitlines() if "│" in line)
    assert "near: deit_small_patch16_224" in vitrail("models", "deit_smal_patch16_224", code=2).stderr
    assert "--classes is 0; it starts at 1." in vitrail("models", "deit", "--classes", 0, code=2).stderr
