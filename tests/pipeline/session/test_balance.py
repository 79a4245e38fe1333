"""Runs on classes of unequal size: weights in the loss, and an order in which all classes come equally often."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.job import TRAINING, Job, resolve
from pipeline.request import Request
from pipeline.rules import recipe_problems, split_problems
from shards.build import build
from shards.dataset import Dataset, read_dataset
from shards.errors import BadRequest
from tests.running import summary, traces, train_here, vitrail
from tests.tiny import HERE

IMAGES = {"a": 30, "b": 20, "c": 8, "d": 2}
BALANCED = replace(HERE, data=replace(HERE.data, balance=True, images=60), epochs=2)
WEIGHTED = replace(HERE, mix=replace(HERE.mix, class_weights="balanced"), epochs=2)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 training images of 24 px in 4 classes of unequal size."""
    folder = tmp_path_factory.mktemp("skewed")
    rng = np.random.default_rng(0)
    for split, share in (("train", 1), ("test", 10)):
        for name, count in IMAGES.items():
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(-(-count // share)):
                pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    build(str(folder / "images"), folder / "shards", samples_per_shard=16, holdout=0.0, processes=1)
    return read_dataset(folder / "shards")


def resolved(recipe: object, data: Dataset, folder: Path) -> Job:
    return resolve(Request(recipe=recipe, data=str(data.folder), output=str(folder)), TRAINING)  # type: ignore[arg-type]


def test_balanced_weights_are_worked_out_from_the_images_that_are_trained_on(skewed: Dataset, tmp_path: Path) -> None:
    job = resolved(WEIGHTED, skewed, tmp_path)
    assert job.class_weights == pytest.approx([60 / (4 * count) for count in IMAGES.values()])
    some = resolved(replace(WEIGHTED, data=replace(WEIGHTED.data, subset=20)), skewed, tmp_path)
    labels = skewed.splits["train"].rows["label"][some.order.chosen]
    counts = np.bincount(labels, minlength=4)
    assert some.class_weights == pytest.approx([20 / (4 * count) if count else 0.0 for count in counts.tolist()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [BALANCED, WEIGHTED, replace(HERE, mix=replace(HERE.mix, class_weights=(1.0, 2.0, 3.0, 4.0)), epochs=2)]
)
def test_a_run_with_balanced_classes_is_resumed_bit_for_bit(
    skewed: Dataset, tmp_path: Path, recipe: object, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, steps in (("unbroken", (8,)), ("resumed", (3, 8))):
        for step in steps:
            train_here(skewed, tmp_path / folder, recipe, max_steps=step, trace_samples=True)  # type: ignore[arg-type]
    one, other = (summary(tmp_path / folder)["weights_sha256"] for folder in ("unbroken", "resumed"))
    assert one == other
    assert traces(tmp_path / "unbroken") == traces(tmp_path / "resumed")
    said = capsys.readouterr().out
    assert ("every class equally often" in said) == (recipe is BALANCED)
    assert ("class weights" in said) == (recipe is not BALANCED)


@pytest.mark.slow
def test_a_balanced_run_trains_on_each_class_equally_often(skewed: Dataset, tmp_path: Path) -> None:
    every = replace(BALANCED, data=replace(BALANCED.data, epoch="images", repeats=1), epochs=1)
    assert train_here(skewed, tmp_path / "run", every, trace_samples=True) == 0
    keys = Counter(key for line in traces(tmp_path / "run") for key, _ in line["views"])
    index = skewed.splits["train"]
    by_class = Counter[int]()
    for sample in range(len(index)):
        by_class[int(index.rows["label"][sample])] += keys[index.key(sample)]
    assert by_class == {0: 15, 1: 15, 2: 15, 3: 15}


def test_what_makes_no_sense_with_classes_is_refused(skewed: Dataset, tmp_path: Path) -> None:
    both = replace(BALANCED, mix=WEIGHTED.mix)
    (problem,) = recipe_problems(both)
    assert "both make up for rare classes" in str(problem)
    for weights in ((1.0, 2.0), (0.0,) * 4):
        (problem,) = recipe_problems(replace(HERE, mix=replace(HERE.mix, class_weights=weights)))
        assert f"--mix.class-weights has {len(weights)} weights: one for each of the 4 classes" in str(problem)
    streamed = replace(skewed, splits={"train": replace(skewed.splits["train"], known=None)})
    for recipe, flag in ((BALANCED, "--data.balance"), (WEIGHTED, "--mix.class-weights")):
        (problem,) = split_problems(recipe, streamed)
        assert str(problem).startswith(f"{flag} goes by the labels of all images")
    done = vitrail("order", "deit_small", "--simulate", "shards=2,samples=9000", "--epoch", 0, "--data.balance", code=2)
    assert "made-up shards do not have" in done.stderr
    with pytest.raises(BadRequest, match=r"--mix\.class-weights is -1\.0"):
        resolved(replace(HERE, mix=replace(HERE.mix, class_weights=(-1.0, 1.0, 1.0, 1.0))), skewed, tmp_path)
