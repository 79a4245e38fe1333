"""Every recipe of the repository is imported, checked, and run for two steps on made-up data."""

import importlib
import pkgutil
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

import recipes
from pipeline.config import Recipe
from pipeline.hosting import Hosting
from pipeline.job import ORDERING, REHEARSAL, resolve
from pipeline.model.build import has_fixed_size
from pipeline.request import Request, parse
from pipeline.rules import recipe_problems
from pipeline.run import carry_out
from pipeline.teacher.teacher import write_random_weights
from recipes.teacher_regnety16gf import RECIPE as TEACHER
from shards.dataset import write_dataset
from shards.index import write_index
from shards.members import Shard, row_dtype
from shards.synthetic import make_dataset
from tests.bench.claims import TABLES, Row
from tests.running import metrics

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_named_for_its_file_and_has_no_problem(name: str) -> None:
    module = importlib.import_module(f"recipes.{name}")
    assert module.RECIPE.name == name
    resolve(Request(recipe=module.RECIPE), REHEARSAL, Hosting())
    assert "Run:" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_every_view_of_a_recipe_has_another_of_its_copy_to_be_mixed_with(name: str) -> None:
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    assert recipe.rank_batch >= 2 * recipe.data.repeats


def test_batch_norm_of_the_teacher_sees_a_virtual_rank_of_images() -> None:
    assert TEACHER.data.repeats == 1
    assert TEACHER.rank_batch == 64


@pytest.mark.parametrize(
    ("said", "images"), [((), (6_149, 2_040)), (("train=train+val", "val=test"), (2_040, 6_149))], ids=["guide", "DeiT"]
)
def test_flowers_are_split_as_the_guide_and_as_deit_split_them(
    tmp_path: Path, said: tuple[str, ...], images: tuple[int, int]
) -> None:
    splits = {}
    for split, count in (("train", 1_020), ("val", 1_020), ("test", 6_149)):  # the official ones
        rows = np.zeros(count, row_dtype(8))
        rows["label"] = np.arange(count) % 102
        (tmp_path / split).mkdir()
        splits[split] = write_index(tmp_path / split, [(Shard("0.tar", count, 1), rows)])
    write_dataset(tmp_path, [str(number) for number in range(102)], splits)
    recipe = importlib.import_module("recipes.transfer_flowers").RECIPE
    recipe = replace(recipe, data=replace(recipe.data, splits=said or recipe.data.splits))
    job = resolve(Request(recipe=recipe, data=str(tmp_path)), ORDERING, Hosting())
    assert job.dataset
    assert {split: len(index) for split, index in job.dataset.splits.items()} == dict(
        zip(("train", "val"), images, strict=True)
    )
    assert job.images == images[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_for_two_steps(name: str, tmp_path: Path) -> None:
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    # its model, augmentation and optimizer, with two images a step; large transformers of two blocks, CNNs at 96 px
    model = replace(recipe.model, pretrained=False)
    if recipe.model.img_size >= 192:
        fixed = has_fixed_size(recipe.model.name)
        model = replace(model, depth=2) if fixed else replace(model, img_size=96)
    small = replace(
        recipe,
        batch=2,
        virtual_ranks=2,
        epochs=max(10, recipe.epochs),
        model=model,
        data=replace(recipe.data, workers=0, subset=0, splits=()),
        eval=replace(recipe.eval, batch=2),
    )
    if recipe.distill.teacher:
        teacher = recipe.distill.teacher.replace("regnety_160.deit_in1k", "regnety_002")
        taught = replace(recipe.distill, teacher=teacher, weights=str(tmp_path / "teacher.safetensors"))
        small = replace(small, distill=taught)
        write_random_weights(small, Path(taught.weights))
    data = make_dataset(
        tmp_path / "data", classes=recipe.data.classes, size=model.img_size + 8, samples={"train": 8, "val": 2}
    )
    assert carry_out(Request(recipe=small, data=str(data.folder), output=str(tmp_path / "run"), max_steps=2)) == 0
    assert [line["samples"] for line in metrics(tmp_path / "run", "eval")] == [2] * (2 if recipe.ema.decay else 1)


# the commands of deit/README_revenge.md: optimizer, rate, decay, epochs, batch, px, mixup, drop path, repeats, the rest
REVENGE: Final = {
    "deit3_small": ("lamb", 4e-3, 0.05, 800, 2048, 224, 0.8, 0.05, 3, "bce"),
    "deit3_base": ("lamb", 3e-3, 0.05, 800, 2048, 192, 0.8, 0.2, 3, "bce"),
    "deit3_base_224": ("adamw", 1e-5, 0.1, 20, 512, 224, 0.8, 0.2, 1, "rand-m9-mstd0.5-inc1"),
    "deit3_small_384": ("adamw", 1e-5, 0.1, 20, 512, 384, 0.8, 0.0, 1, "rand-m9-mstd0.5-inc1"),
    "deit3_small_in21k": ("lamb", 1e-3, 0.02, 240, 2048, 224, 0.0, 0.05, 1, "src"),
    "deit3_base_in21k": ("lamb", 1e-3, 0.02, 240, 2048, 224, 0.0, 0.1, 1, "src"),
    "deit3_small_in21k_in1k": ("lamb", 3e-4, 0.02, 50, 2048, 224, 0.0, 0.05, 1, "src"),
    "deit3_base_in21k_in1k": ("lamb", 3e-4, 0.02, 50, 2048, 224, 0.0, 0.15, 1, "src"),
}


@pytest.mark.parametrize("name", REVENGE)
def test_deit3_is_trained_by_the_published_commands(name: str) -> None:
    recipe: Recipe = importlib.import_module(f"recipes.{name}").RECIPE
    *numbers, rest = REVENGE[name]
    optim, augment, mix = recipe.optim, recipe.augment, recipe.mix
    assert [optim.name, recipe.peak_lr, optim.weight_decay, recipe.epochs, recipe.batch, recipe.model.img_size,
            mix.mixup_alpha, recipe.model.drop_path, recipe.data.repeats] == numbers  # fmt: skip
    # --smoothing 0.1, soft targets and RandAugment without 3-Augment; or --ThreeAugment --color-jitter 0.3
    assert (mix.loss, mix.smoothing) == (("bce", 0.0) if rest == "bce" else ("ce", 0.1))
    rand = rest.startswith("rand")
    assert (augment.policy, augment.rand_ops, augment.jitter) == (("rand", 2, 0.0) if rand else ("three", 0, 0.3))
    assert augment.crop == ("simple" if rest == "src" else "resized")
    # of all of them
    assert (mix.cutmix_alpha, augment.erase, recipe.eval.crop_ratio) == (1.0, 0.0, 1.0)
    assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == (5, 1e-6, 1e-5)


@pytest.mark.parametrize(
    "row", [row for table in TABLES for row in table.rows if isinstance(row, Row)], ids=lambda row: row.name
)
def test_a_row_of_the_reproduction_is_a_request_without_a_problem(row: Row) -> None:
    recipe = importlib.import_module(f"recipes.{row.recipe}").RECIPE
    request = parse(recipe, re.sub(r"\{[^}]*\}", "there", row.flags).split())
    assert list(recipe_problems(request.recipe)) == []
    assert request.unknown == ()
