"""Weights of others."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.model.build import build_model, check_start
from pipeline.model.weights import load_weights
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.tiny import TINY

SIZE: Final = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 3}
PLAIN: Final = "deit_tiny_patch16_224"
DISTILLED: Final = "deit_tiny_distilled_patch16_224"
CLIP: Final = "vit_base_patch16_clip_224"

Tensors = Mapping[str, Tensor]


def vit(name: str = PLAIN, **options: Any) -> Any:
    return timm.create_model(name, **(SIZE | options)).eval()


def taken(net: nn.Module, held: Any, folder: Path, **options: Any) -> str:
    """Give a model what torch.save wrote, and return what was said but for the path."""
    torch.save(held, folder / "held.pth")
    heads = tuple(name for name in ("head", "head_dist") if hasattr(net, name))
    return load_weights(net, str(folder / "held.pth"), "model.weights", heads, **options).partition(": ")[2]


def refused(net: nn.Module, held: Any, folder: Path, **options: Any) -> str:
    with pytest.raises(BadRequest) as error:
        taken(net, held, folder, **options)
    return str(error.value)


def under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def headless(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("head")}


def shifted(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in tensors.items()}


def renamed(tensors: Tensors, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors by the names that other libraries give them; theirs of query, key and value are three."""
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        if "{}" in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {name.format(part): piece for part, piece in parts}
        else:
            found[name] = value
    return found


TRANSFORMERS: Final = {
    r"^patch_embed\.proj": "vit.embeddings.patch_embeddings.projection",
    r"^cls_token": "vit.embeddings.cls_token",
    r"^pos_embed": "vit.embeddings.position_embeddings",
    r"^blocks\.": "vit.encoder.layer.",
    r"attn\.qkv": "attention.attention.{}",
    r"attn\.proj": "attention.output.dense",
    r"norm1": "layernorm_before",
    r"norm2": "layernorm_after",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
    r"^norm": "vit.layernorm",
    r"^head": "classifier",
}
MMPRETRAIN: Final = {
    r"^head": "head.layers.head",
    r"^norm\.": "backbone.ln1.",
    r"^patch_embed\.proj": "backbone.patch_embed.projection",
    r"^(cls_token|pos_embed)": r"backbone.\1",
    r"\.norm([12])": r".ln\1",
    r"mlp\.fc1": "ffn.layers.0.0",
    r"mlp\.fc2": "ffn.layers.1",
    r"^blocks": "backbone.layers",
}
CLIPS: Final = {
    r"^patch_embed\.proj": "conv1",
    r"^pos_embed": "positional_embedding",
    r"^cls_token": "class_embedding",
    r"^norm_pre": "ln_pre",
    r"^norm\.": "ln_post.",
    r"^blocks": "transformer.resblocks",
    r"\.norm([12])": r".ln_\1",
    r"attn\.qkv\.": "attn.in_proj_",
    r"attn\.proj": "attn.out_proj",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda own: own, "all as the model has it"),
        (lambda own: {"state_dict": own, "epoch": 3, "metric": 71.2}, "`state_dict` of the file"),  # timm's train.py
        (lambda own: {"model": own, "optimizer": {"state": {0: {"exp_avg": own["cls_token"]}}}}, "`model` of the file"),
        (lambda own: {"model_state_dict": own}, "`model_state_dict` of the file"),
        (lambda own: {"model": {"module": own}}, "`model` of the file; `module` of the file"),
        (lambda own: {"state_dict_ema": own}, "`state_dict_ema` of the file"),
        (lambda own: {"model_ema": shifted(own), "model": own}, "`model` of the file is taken, not `model_ema`"),
        (lambda own: under("module.", own), "under `module`"),
        (lambda own: under("module._orig_mod.", own), "under `module._orig_mod`"),
        (lambda own: under("_orig_mod.module.", own), "under `_orig_mod.module`"),
        (lambda own: {"state_dict": under("model.", own), "callbacks": {}}, "`state_dict` of the file; under `model`"),
        (  # torch's AveragedModel
            lambda own: {"n_averaged": torch.tensor(3), **under("module.", own)},
            "under `module`; 1 tensor left out (n_averaged)",
        ),
        (  # two towers of MoCo v3: the one that is trained
            lambda own: {**under("module.base_encoder.", own), **under("module.momentum_encoder.", shifted(own))},
            "under `module.base_encoder`; ",
        ),
        (lambda own: own | {"total_ops": torch.ones(1), "norm.total_params": torch.ones(1)}, "2 tensors left out"),
        (  # a backbone in somebody's Lightning module, with its loss
            lambda own: {"state_dict": under("extractor.model.", own) | {"criterion.weight": torch.ones(3)}},
            "`state_dict` of the file; under `extractor.model`; 1 tensor left out (criterion)",
        ),
    ],
)  # fmt: skip
def test_weights_are_taken_out_of_what_trainers_wrap_them_in(
    wrap: Callable[[Tensors], Any], said: str, tmp_path: Path
) -> None:
    source, net = vit(), vit()
    assert taken(net, wrap(source.state_dict()), tmp_path).startswith(said)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_and_it_is_said(kind: torch.dtype, tmp_path: Path) -> None:
    source, net = vit(), vit()
    held = {name: value.to(kind) for name, value in source.state_dict().items()}
    assert taken(net, held, tmp_path) == f"{str(kind).removeprefix('torch.')}, taken as float32"
    torch.testing.assert_close(net.head.weight, source.head.weight, atol=1e-2, rtol=1e-2)
    assert net.head.weight.dtype == torch.float32


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize(("library", "theirs"), [("transformers", TRANSFORMERS), ("mmpretrain", MMPRETRAIN)])
def test_vits_of_other_libraries_are_given_timms_names(
    library: str, theirs: Mapping[str, str], prefix: str, tmp_path: Path
) -> None:
    source, net = vit(), vit()
    held = under(prefix, renamed(source.state_dict(), theirs) | {"pooler.dense.weight": torch.zeros(48, 48)})
    assert f"names of {library}" in taken(net, held, tmp_path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_vit_of_torchvision_answers_the_same(prefix: str, tmp_path: Path) -> None:
    source = torchvision.models.VisionTransformer(32, 8, 2, 2, 48, 192, num_classes=3).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    net, images = vit(), torch.randn(2, 3, 32, 32)
    assert "names of torchvision" in taken(net, under(prefix, source.state_dict()), tmp_path)
    torch.testing.assert_close(net(images), source(images))


@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
def test_the_image_tower_of_clip_is_taken_and_the_text_left_out(prefix: str, tmp_path: Path) -> None:
    source, net = vit(CLIP), vit(CLIP)
    tower = renamed(headless(source.state_dict()), CLIPS)
    tower |= {"class_embedding": tower["class_embedding"][0, 0], "proj": torch.zeros(48, 16)}
    tower["positional_embedding"] = tower["positional_embedding"][0]
    text = {f"{prefix.removesuffix('visual.')}transformer.text.weight": torch.zeros(1)} if prefix else {}
    assert "--model.new-head" in refused(net, under(prefix, tower) | text, tmp_path)
    said = taken(net, under(prefix, tower) | text, tmp_path, new_heads=True)
    assert "image tower of CLIP" in said
    assert ("1 tensor left out" in said) == bool(prefix)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in headless(net.state_dict()).items())


def test_open_clips_tower_of_timm_is_found_under_its_name(tmp_path: Path) -> None:
    source, net = vit(), vit()
    held = under("visual.trunk.", headless(source.state_dict())) | {"text.weight": torch.zeros(1)}
    assert taken(net, held, tmp_path, new_heads=True).startswith("under `visual.trunk`; 1 tensor left out (text)")
    assert torch.equal(net.cls_token, source.cls_token)


def test_layer_scale_is_called_as_deit_iii_calls_it(tmp_path: Path) -> None:
    source, net = (vit("deit3_small_patch16_224") for _ in range(2))
    nn.init.normal_(source.blocks[1].ls2.gamma)
    held = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): value for name, value in source.state_dict().items()}
    taken(net, {"model": held}, tmp_path)
    assert torch.equal(net.blocks[1].ls2.gamma, source.blocks[1].ls2.gamma)


def test_query_and_value_with_biases_of_their_own_are_joined(tmp_path: Path) -> None:
    source, net = vit(), vit()
    held = dict(source.state_dict())
    for block in range(2):
        bias = held.pop(f"blocks.{block}.attn.qkv.bias")
        held |= {f"blocks.{block}.attn.q_bias": bias[:48] + 1, f"blocks.{block}.attn.v_bias": bias[96:] + 2}
    taken(net, held, tmp_path)
    assert [part.unique().tolist() for part in net.blocks[1].attn.qkv.bias.chunk(3)] == [[1], [0], [2]]


def test_of_mae_the_encoder_is_taken_and_the_head_is_new(tmp_path: Path) -> None:
    source, net = vit(), vit()
    decoder = dict.fromkeys(
        ("decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"), torch.ones(9)
    )
    decoder["mask_token"] = torch.zeros(1, 1, 32)
    held = {"model": headless(source.state_dict()) | decoder}
    assert refused(net, held, tmp_path).endswith(
        "head.bias is missing; head.weight is missing. To go on with new heads: --model.new-head"
    )
    said = taken(net, held, tmp_path, new_heads=True)
    assert "mask_token left out; head new; 3 tensors left out (decoder_blocks, decoder_embed, decoder_pos" in said
    assert torch.equal(net.blocks[1].norm2.weight, source.blocks[1].norm2.weight)


def test_of_dino_the_teachers_backbone_is_taken(tmp_path: Path) -> None:
    source, net = vit(), vit()
    backbone = under("module.backbone.", headless(source.state_dict()))
    held = {"student": shifted(backbone), "teacher": backbone | {"module.head.mlp.0.weight": torch.zeros(3, 48)}}
    said = taken(net, held, tmp_path, new_heads=True)
    assert said.startswith("`teacher` of the file is taken, not `student`; under `module.backbone`; 1 tensor left out")
    assert torch.equal(net.cls_token, source.cls_token)


def test_registers_of_dinov2_are_taken_by_timms_rules(tmp_path: Path) -> None:
    options = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
    source, net = vit("vit_small_patch14_reg4_dinov2", **options), vit("vit_small_patch14_reg4_dinov2", **options)
    held = headless(source.state_dict())
    held["register_tokens"] = held.pop("reg_token")
    held["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), held["pos_embed"]], dim=1)  # the class token's own position
    assert "mask_token left out" in taken(net, held | {"mask_token": torch.zeros(1, 48)}, tmp_path, new_heads=True)
    assert torch.equal(net.reg_token, source.reg_token)


def test_of_a_distilled_model_a_plain_one_takes_all_but_the_token(tmp_path: Path) -> None:
    source, net = vit(DISTILLED), vit()
    assert taken(net, source.state_dict(), tmp_path) == "the distillation token, its position and its head left out"
    assert torch.equal(net.pos_embed[:, 1:], source.pos_embed[:, 2:])
    assert torch.equal(net.pos_embed[:, :1], source.pos_embed[:, :1])
    assert torch.equal(net.head.weight, source.head.weight)


def test_of_a_plain_model_a_distilled_one_takes_all_with_new_heads(tmp_path: Path) -> None:
    source, net = vit(img_size=48), vit(DISTILLED)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert "has no distillation token" in refused(net, source.state_dict(), tmp_path)
    assert "--model.new-head" in refused(net, source.state_dict(), tmp_path)
    said = taken(net, source.state_dict(), tmp_path, new_heads=True)
    assert "position embeddings resized to 4 x 4; head and head_dist new" in said
    assert torch.equal(net.pos_embed[:, :1], source.pos_embed[:, :1])
    assert torch.equal(net.pos_embed[:, 1:2], before["pos_embed"][:, 1:2])
    for name in ("dist_token", "head.weight", "head_dist.weight"):
        assert torch.equal(net.state_dict()[name], before[name])
    assert torch.equal(net.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_positions_of_a_grid_whose_sides_nothing_tells_are_refused(tmp_path: Path) -> None:
    held = vit().state_dict() | {"pos_embed": torch.zeros(1, 1 + 3 * 8, 48)}
    assert "pos_embed has 24 positions beside 1 tokens: no square grid" in refused(vit(), held, tmp_path)


def test_positions_and_patches_of_other_sizes_are_resized_and_it_is_said(tmp_path: Path) -> None:
    said = taken(vit(), vit(img_size=48, patch_size=16).state_dict(), tmp_path)
    assert said == "position embeddings resized to 4 x 4; patch embedding resized"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": 96}, "blocks.0.attn.proj.bias is [96], not [48]; "),
        ({"depth": 3}, "blocks.2.attn.proj.bias is not in the model; "),
        ({"depth": 1}, "blocks.1.attn.proj.bias is missing; "),
        ({"global_pool": "avg"}, "fc_norm.bias is not in the model; fc_norm.weight is not in the model; norm.bias"),
    ],
)
def test_weights_of_another_model_are_listed_by_name_without_a_flag(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    message = refused(vit(), vit(**change).state_dict(), tmp_path)
    assert f"of another model or other classes: {words}" in message
    assert "--model.new-head" not in message


def test_what_holds_no_tensors_is_named_by_what_it_holds(tmp_path: Path) -> None:
    assert "holds no tensors by name (optimizer, epoch)" in refused(vit(), {"optimizer": {}, "epoch": 1}, tmp_path)
    assert "holds no tensors by name (list)" in refused(vit(), [torch.zeros(1)], tmp_path)


def test_position_embeddings_are_resized_for_another_size_of_image(tmp_path: Path) -> None:
    small = replace(TINY.model, name="deit_tiny_distilled_patch16_224")
    save_file(build_model(small, 4, seed=0).state_dict(), tmp_path / "small.safetensors")
    large = build_model(replace(small, img_size=32, weights=str(tmp_path / "small.safetensors")), 4, seed=1)
    assert large.pos_embed.shape == (1, 16 + 2, 32)  # class and distillation token keep theirs
    before = build_model(small, 4, seed=0).pos_embed
    assert torch.equal(large.pos_embed[:, :2], before[:, :2])
    torch.testing.assert_close(large.pos_embed[0, 2:], as_deit_resizes(before[0, 2:], 4))


def as_deit_resizes(positions: Tensor, side: int) -> Tensor:
    """Return positions [N, width] of a square grid on one of another side, as deit/main.py computes them."""
    before = math.isqrt(len(positions))
    grid = positions.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)[0].flatten(1).T


def test_position_embeddings_of_published_weights_are_resized_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def publish(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        net = create(name, **options)
        if pretrained:
            nn.init.constant_(net.head.bias, 7)
            nn.init.normal_(net.pos_embed, generator=torch.Generator().manual_seed(0))
        return net

    monkeypatch.setattr(timm, "create_model", publish)
    published = publish(PLAIN, pretrained=True, embed_dim=32, num_heads=2, depth=1)
    settings = Model(name=PLAIN, img_size=384, width=32, heads=2, depth=1, pretrained=True)
    net = build_model(settings, 3, seed=0)
    assert net.head.bias.tolist() == [7, 7, 7]
    torch.testing.assert_close(net.pos_embed[0, 1:], as_deit_resizes(published.pos_embed[0, 1:], 24))


def test_weights_of_other_classes_need_a_new_head(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "seven.safetensors"
    save_file(build_model(TINY.model, 7, seed=0).state_dict(), path)
    seven = replace(TINY, model=replace(TINY.model, weights=str(path)))
    with pytest.raises(BadRequest, match=r"head.bias is \[7\], not \[4\].*--model.new-head"):
        check_start(seven)
    assert "head new" in check_start(replace(seven, model=replace(seven.model, new_head=True)))
    net = build_model(replace(seven.model, new_head=True), 4, seed=1)
    assert torch.equal(net.head.weight, build_model(TINY.model, 4, seed=1).head.weight)
    assert torch.equal(net.cls_token, build_model(TINY.model, 7, seed=0).cls_token)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50"])
def test_weights_of_torchvision_fit(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        ours = timm.create_model(name, num_classes=3)
        theirs = torchvision.models.get_model(name, num_classes=3).state_dict()
    # without the bytes of a VGG: numbers of one element stand for all
    held = {name: torch.zeros(()).expand(value.shape) for name, value in theirs.items()}
    taken(ours, under("module.", held), tmp_path)
