"""The teacher; runs with one are in test_store.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config import Distill, Model
from pipeline.model.build import build_model
from pipeline.model.hub import timm_config
from pipeline.teacher.teacher import Input, Teacher, build_teacher, check_teacher
from shards.errors import BadRequest
from shards.files import write_json
from tests.tiny import TINY


def test_the_teacher_sees_the_same_pixels_at_its_own_size_and_normalisation() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    student = Model(name="deit_tiny_patch16_224", img_size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expects = Input(16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean((2, 3))

    teacher = Teacher(Net(), expects, student)
    teacher((pixels - torch.tensor(student.mean).view(3, 1, 1)) / torch.tensor(student.std).view(3, 1, 1))
    larger = nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    expected = (larger - torch.tensor(expects.mean).view(3, 1, 1)) / torch.tensor(expects.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet20_cifar", num_classes=4).state_dict(), tmp_path / "t.safetensors")
    recipe = replace(TINY, distill=Distill(teacher="resnet20_cifar", weights=str(tmp_path / "t.safetensors")))
    teacher = build_teacher(recipe).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_published_positions_of_a_vit_are_resized_as_the_students_are(monkeypatch: pytest.MonkeyPatch) -> None:
    create, vit = timm.create_model, "deit_tiny_patch16_224"

    def publish(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        net = create(name, **options)
        if pretrained:
            nn.init.normal_(net.pos_embed, generator=torch.Generator().manual_seed(0))
        return net

    monkeypatch.setattr(timm, "create_model", publish)
    teacher: Any = build_teacher(replace(TINY, distill=Distill(teacher=vit, img_size=32))).net
    student = build_model(Model(name=vit, img_size=32, pretrained=True), 4, seed=0)
    assert torch.equal(teacher.pos_embed, student.pos_embed)


def a_run(folder: Path, model: Model) -> Distill:
    """Return the teacher that a finished run of a model makes, at twice its size."""
    folder.mkdir()
    save_file(build_model(model, 4, seed=0).state_dict(), folder / "model.safetensors")
    recipe = replace(TINY, model=replace(model, mean=TINY.model.mean, std=TINY.model.std))
    write_json(folder / "config.json", timm_config(recipe, [], 32))
    return Distill(teacher=f"local-dir:{folder}", img_size=2 * model.img_size)


def test_the_run_of_a_vit_teaches_at_another_size_with_its_positions_resized(tmp_path: Path) -> None:
    recipe = replace(TINY, distill=a_run(tmp_path / "run", TINY.model))
    assert check_teacher(recipe) == ""
    teacher = build_teacher(recipe)
    assert teacher(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    weights = str(tmp_path / "run" / "model.safetensors")
    student = build_model(replace(TINY.model, img_size=32, weights=weights), 4, seed=0)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.net.state_dict().items())


def test_the_run_of_a_network_of_convolutions_teaches_at_another_size(tmp_path: Path) -> None:
    recipe = replace(TINY, distill=a_run(tmp_path / "run", Model(name="resnet20_cifar", img_size=16)))
    assert check_teacher(recipe) == ""
    assert build_teacher(recipe)(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_the_run_of_a_vit_of_torchvisions_is_refused_at_another_size(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    config = {"architecture": "torchvision:vit_b_16", "num_classes": 4,
              "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}}  # fmt: skip
    write_json(tmp_path / "config.json", config)
    with pytest.raises(BadRequest, match="was trained at 32 px, and torchvision's ViT takes no other size"):
        check_teacher(replace(TINY, distill=Distill(teacher=f"local-dir:{tmp_path}", img_size=64)))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("resnet18.a1_in1k", "knows 1000 classes, the recipe has 4"),
        ("torchvision:resnet18", "knows 1000 classes, the recipe has 4"),
        ("torchvision:regnet_y_400mf", "knows 1000 classes, the recipe has 4"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is not known"),  # which finds boxes
        ("resnet20_cifar", "no weights are published"),
        ("local-dir:/nowhere", "not the folder of a finished run"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named_before_it_is_built(teacher: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_teacher(replace(TINY, distill=Distill(teacher=teacher)))


def test_a_torchvision_teacher_takes_what_its_weights_take(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.save(shufflenet_v2_x0_5(num_classes=4).state_dict(), tmp_path / "net.pth")
    recipe = replace(TINY, distill=Distill(teacher="torchvision:shufflenet_v2_x0_5", weights=f"{tmp_path}/net.pth"))
    assert check_teacher(recipe) == f"{tmp_path}/net.pth: all as the model has it"
    teacher = build_teacher(recipe)
    assert (teacher.size, teacher.same_colours) == (224, True)
    assert teacher(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
