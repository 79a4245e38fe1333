"""Evaluation against a count that anybody can follow."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from pipeline.config import Recipe
from pipeline.data.augment import center
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import LOOKING, resolve
from pipeline.request import Request
from pipeline.session.evaluate import Score, evaluate, evaluation_loader
from shards.dataset import Dataset, read_dataset
from shards.decode import decode
from shards.reader import Reader
from shards.synthetic import make_dataset
from tests.tiny import HERE

CLASSES, SAMPLES, BAD = 9, 21, 10  # a part of 8 does not divide the split; the bad sample lies within one


@pytest.fixture
def flawed(tmp_path: Path) -> Dataset:
    """A split of 21 images in 9 classes, of which one cannot be used."""
    folder = tmp_path / "data"
    index = make_dataset(folder, classes=CLASSES, size=24, samples={"train": 20, "test": SAMPLES}).splits["test"]
    tar = index.folder / index.shards[index.shard_of(BAD)].name
    with tar.open("r+b") as file:
        file.seek(int(index.rows["offset"][BAD]) + 50)
        file.write(b"damaged")
    return read_dataset(folder)


class Guess(nn.Module):
    """Gives logits that are far from sure, and others in training than in evaluation."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.drop = DropPath(0.5)
        self.weights = torch.randn(3 * 16 * 16, CLASSES, generator=torch.Generator().manual_seed(seed)) / 20

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(images.flatten(1) @ self.weights)


def score(dataset: Dataset, recipe: Recipe, nets: dict[str, nn.Module]) -> tuple[dict[str, Score], list[int]]:
    """Evaluate, and return the scores and which samples could not be used."""
    request = Request(recipe=recipe, data=str(dataset.folder))
    job = resolve(request, LOOKING, Hosting())
    accelerator = build_accelerator(job.hosting, recipe.compute)
    loader = evaluation_loader(job, dataset.splits["test"], accelerator)
    scores, unusable = evaluate(nets, loader, accelerator)
    return scores, [found.sample for found in unusable]


def counted(dataset: Dataset, recipe: Recipe, net: nn.Module) -> Score:
    """Return the score as it is found by going through the split image by image."""
    index = dataset.splits["test"]
    reader = Reader(index)
    mean, std = np.array(recipe.model.mean), np.array(recipe.model.std)
    top1 = top5 = samples = 0
    loss = 0.0
    for sample in range(SAMPLES):
        if sample == BAD:
            continue
        pixels = center(decode(reader.read(sample), ""), recipe.model.img_size, recipe.eval.crop_ratio) / 255
        image = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1).float()
        logits = net.eval()(image[None])[0].double().tolist()
        label = sample % CLASSES
        better = sum(logit > logits[label] for logit in logits)
        top1 += better < 1
        top5 += better < 5
        loss += float(np.log(np.sum(np.exp(logits)))) - logits[label]
        samples += 1
    return Score(top1 / samples, top5 / samples, loss / samples, samples, {})


@pytest.mark.parametrize("part", [1, 8, 21, 64])
def test_scores_are_those_of_a_count_image_by_image(flawed: Dataset, part: int) -> None:
    recipe = replace(HERE, data=replace(HERE.data, classes=CLASSES), eval=replace(HERE.eval, batch=part))
    nets = {"raw": Guess(1), "ema": Guess(2)}
    scores, _ = score(flawed, recipe, {name: net.eval() for name, net in nets.items()})
    assert list(scores) == ["raw", "ema"]
    for name, net in nets.items():
        expected = counted(flawed, recipe, net)
        assert (scores[name].top1, scores[name].top5) == (expected.top1, expected.top5)
        assert scores[name].loss == pytest.approx(expected.loss, rel=1e-5)
        assert scores[name].samples == SAMPLES - 1
        assert 0 < expected.top1 < expected.top5 < 1  # a count that could be wrong


def test_an_unusable_sample_is_left_out_and_named(flawed: Dataset) -> None:
    recipe = replace(HERE, data=replace(HERE.data, classes=CLASSES))
    scores, unusable = score(flawed, recipe, {"raw": Guess(1).eval()})
    assert unusable == [BAD]
    assert scores["raw"].samples == SAMPLES - 1


def test_with_fewer_than_five_classes_every_answer_is_among_the_top_five(dataset: Dataset) -> None:
    class Four(Guess):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images)[:, :4]

    scores, _ = score(dataset, HERE, {"raw": Four(1).eval()})
    assert scores["raw"].top5 == 1
    assert scores["raw"].top1 < 1


def test_a_split_of_which_nothing_can_be_used_scores_nothing(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.folder, tmp_path / "data")
    for tar in (tmp_path / "data" / "test").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    scores, unusable = score(read_dataset(tmp_path / "data"), HERE, {"raw": Guess(1).eval()})
    assert scores["raw"] == Score(0, 0, 0, 0, {})
    assert unusable == list(range(21))
