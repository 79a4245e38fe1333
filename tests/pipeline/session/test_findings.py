"""What an evaluation found: confusion, mistakes, attention."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image

from pipeline.data.batch import EvaluationBatches
from pipeline.folder import FindingsHead, RunFolder
from pipeline.session.answers import Answers, Gathering
from pipeline.session.findings import MISTAKES, attention, find, overlaid, write_findings
from shards.dataset import Dataset
from shards.errors import VitrailError
from shards.files import read_json
from tests.tiny import HERE

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
CPU = torch.device("cpu")


def test_answers_are_gathered_by_sample() -> None:
    gathering = Gathering(5, 4, Accelerator(cpu=True))
    logits = torch.tensor([[0.0, 0, 0, 9], [0, 0, 0, 9]])
    gathering.note(np.array([4, 2]), torch.tensor([1, 3]), logits)
    answers = gathering.of_all([0, 1, 3])
    assert (answers.samples.tolist(), answers.labels.tolist()) == ([2, 4], [3, 1])
    assert answers.classes[:, 0].tolist() == [3, 3]
    assert answers.probabilities[:, 0].tolist() == pytest.approx([0.99963, 0.99963], abs=1e-4)
    with pytest.raises(VitrailError, match="1 of 5 samples came not once"):
        gathering.of_all([0, 1])


def first(labels: list[int], classes: list[int], probabilities: list[float]) -> Answers:
    """Return the first answers for samples from 0 on."""
    of_one = (
        torch.tensor(classes, dtype=torch.int64)[:, None],
        torch.tensor(probabilities, dtype=torch.float64)[:, None],
    )
    return Answers(
        torch.arange(len(labels)), torch.tensor(labels, dtype=torch.int64), *of_one, torch.zeros(len(labels))
    )


def test_mistakes_are_the_most_confident_ones_and_the_confusion_counts_all(dataset: Dataset, tmp_path: Path) -> None:
    answers = first([sample % 4 for sample in range(21)], [0] * 21, [sample / 21 for sample in range(21)])
    batches = EvaluationBatches(HERE, dataset.splits["test"])
    net = timm.create_model("deit_tiny_distilled_patch16_224", **SMALL).eval()
    found = find(net, "ema", answers, batches, ("a", "b", "c", "d"), 7, CPU)
    assert found.head["confusion"] == [[0, 0, 6], [1, 0, 5], [2, 0, 5], [3, 0, 5]]
    chances = [mistake["probability"] for mistake in found.head["mistakes"]]
    assert chances == sorted(chances, reverse=True)
    assert len(chances) == MISTAKES
    assert all(mistake["label"] != 0 == mistake["answer"] for mistake in found.head["mistakes"])
    assert found.head["mistakes"][0]["key"] == dataset.splits["test"].key(19)
    folder = RunFolder(tmp_path)
    write_findings(folder, found)
    assert read_json(folder.findings_head, FindingsHead) == found.head
    assert found.head["tokens"] == ["class", "distillation"]
    for kind in ("mistake", "image", "class", "distillation"):
        with Image.open(folder.finding(kind, 0)) as image:
            assert image.size == (16, 16)


def test_of_right_answers_there_is_no_mistake_and_of_none_no_picture(dataset: Dataset) -> None:
    batches = EvaluationBatches(replace(HERE), dataset.splits["test"])
    net = timm.create_model("deit_tiny_patch16_224", **SMALL).eval()
    right = first([0, 1, 2], [0, 1, 2], [1.0, 1.0, 1.0])
    assert find(net, "raw", right, batches, ("a", "b", "c"), 1, CPU).head["mistakes"] == []
    nothing = first([], [], [])
    assert find(net, "raw", nothing, batches, (), 1, CPU).head["looked_at"] == []


@pytest.mark.parametrize(("name", "tokens"), [("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_attention_is_that_of_the_last_block_and_leaves_the_net_as_it_was(name: str, tokens: int) -> None:
    net = timm.create_model(name, **SMALL).eval()
    images = torch.randn(3, 3, 16, 16)
    before = net(images)
    seen = attention(net, images)
    assert seen is not None
    assert seen.shape == (tokens, 3, 2, 2)
    with torch.no_grad():
        tokens_in = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        last = net.blocks[1]
        normed = last.norm1(net.blocks[0](tokens_in))
        queries, keys, _ = last.attn.qkv(normed).view(3, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
        whole = (queries @ keys.transpose(-2, -1) / 4).softmax(-1).mean(1)
    expected = whole[:, :tokens, tokens:].transpose(0, 1).reshape(tokens, 3, 2, 2).numpy()
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert torch.equal(net(images), before)


def test_a_network_without_a_class_token_has_no_map_of_attention() -> None:
    assert attention(timm.create_model("resnet10t", num_classes=4).eval(), torch.zeros(1, 3, 32, 32)) is None
    pooled = timm.create_model("deit_tiny_patch16_224", **SMALL, class_token=False, global_pool="avg").eval()
    assert attention(pooled, torch.zeros(1, 3, 16, 16)) is None
    for name in ("vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"):  # parts side by side
        assert attention(timm.create_model(name, **SMALL).eval(), torch.zeros(1, 3, 16, 16)) is None


def test_an_image_is_dark_where_nobody_looks() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    shown = overlaid(image, np.array([[1.0, 0.0], [0.0, 0.0]], np.float32))
    assert shown[0, 0, 0] == 200
    assert shown[3, 3, 0] == 30
