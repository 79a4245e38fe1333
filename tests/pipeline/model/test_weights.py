"""Weights of others."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.model.build import build_model, on_meta
from pipeline.model.weights import as_timm_names_them, load_weights
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.tiny import TINY


def test_weights_are_taken_out_of_wrappers_and_never_unpickled(tmp_path: Path) -> None:
    source, net = (timm.create_model("resnet20_cifar") for _ in range(2))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}, "best_prec1": 9}
    torch.save(wrapped, tmp_path / "weights.th")
    load_weights(net, str(tmp_path / "weights.th"), "distill.weights")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "owned"),))  # type: ignore[return-value]

    (tmp_path / "evil.th").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    for name in ("evil.th", "evil.pth"):
        with pytest.raises(BadRequest, match="not a file of weights alone"):
            load_weights(net, str(tmp_path / name), "distill.weights")
    assert not (tmp_path / "owned").exists()


def test_position_embeddings_are_resized_for_another_size_of_image(tmp_path: Path) -> None:
    small = replace(TINY.model, name="deit_tiny_distilled_patch16_224")
    save_file(build_model(small, 4, seed=0).state_dict(), tmp_path / "small.safetensors")
    large = build_model(replace(small, img_size=32, weights=str(tmp_path / "small.safetensors")), 4, seed=1)
    assert large.pos_embed.shape == (1, 16 + 2, 32)  # class and distillation token keep theirs
    assert torch.equal(large.pos_embed[:, :2], build_model(small, 4, seed=0).pos_embed[:, :2])


def test_weights_of_other_classes_need_a_new_head(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "seven.safetensors"
    save_file(build_model(TINY.model, 7, seed=0).state_dict(), path)
    seven = replace(TINY, model=replace(TINY.model, weights=str(path)))
    with pytest.raises(BadRequest, match=r"head.bias is \[7\], not \[4\]"):
        on_meta(seven)
    on_meta(replace(seven, model=replace(seven.model, new_head=True)))
    net = build_model(replace(seven.model, new_head=True), 4, seed=1)
    assert torch.equal(net.head.weight, build_model(TINY.model, 4, seed=1).head.weight)
    assert torch.equal(net.cls_token, build_model(TINY.model, 7, seed=0).cls_token)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50"])
def test_weights_of_torchvision_fit(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.get_model(name).state_dict(), timm.create_model(name)
    renamed = as_timm_names_them(theirs, ours)
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
