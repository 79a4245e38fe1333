"""What the weights that a model starts from were trained with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from pipeline.checkpoint import checkpoints
from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, Model, Recipe
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.model.build import build_model
from pipeline.model.start import Trained, trained_with
from pipeline.request import Request, parse
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import summary, train_here
from tests.tiny import HERE, TINY

HALF = (0.5, 0.5, 0.5)
UNSAID = replace(HERE, model=replace(HERE.model, mean=None, std=None))


def starting(weights: Path | str, recipe: Recipe = UNSAID, **fields: Any) -> Recipe:
    return replace(recipe, model=replace(recipe.model, weights=str(weights), **fields))


def job(recipe: Recipe, **options: Any) -> Job:
    return resolve(Request(recipe=recipe, **options), REHEARSAL, Hosting())


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder as timm saves a model to a hub: trained with mean and deviation 0.5."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(build_model(TINY.model, 4, seed=3).state_dict(), folder / "model.safetensors")
    config = {"pretrained_cfg": {"mean": HALF, "std": HALF, "interpolation": "bilinear", "input_size": [3, 16, 16]}}
    (folder / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224", **config}))
    return folder


def test_a_model_that_starts_from_nothing_takes_imagenets_mean_and_says_nothing() -> None:
    resolved = job(UNSAID)
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert resolved.start == ""
    assert resolved.identity == job(HERE).identity


def test_the_mean_of_published_weights_is_that_of_their_name() -> None:
    model = replace(UNSAID.model, name="vit_tiny_patch16_224", pretrained=True)
    resolved = job(replace(UNSAID, model=model))
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (HALF, HALF)
    assert resolved.start == (
        "published by timm for vit_tiny_patch16_224; mean 0.5 0.5 0.5, std 0.5 0.5 0.5 as they were trained"
    )
    assert trained_with(replace(model, pretrained=False)) == Trained()


def test_the_mean_of_a_hub_folder_is_that_of_its_config(hub: Path) -> None:
    for weights in (hub, hub / "model.safetensors"):
        resolved = job(starting(weights))
        assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (HALF, HALF)
        assert resolved.start == (
            f"{hub}/model.safetensors: all as the model has it; mean 0.5 0.5 0.5, std 0.5 0.5 0.5 as they were "
            f"trained; trained on bilinear images, which are bicubic here"
        )


def test_the_mean_of_a_model_of_transformers_is_that_of_its_preprocessor(hub: Path) -> None:
    (hub / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (hub / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": HALF, "resample": 2}))
    assert trained_with(starting(hub).model) == Trained(HALF, HALF, "bilinear")


def test_a_mean_that_the_recipe_says_is_kept_and_the_difference_said(hub: Path) -> None:
    resolved = job(starting(hub, mean=IMAGENET_MEAN, std=HALF))
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (IMAGENET_MEAN, HALF)
    assert "trained with mean 0.5 0.5 0.5, and the recipe says 0.485 0.456 0.406; " in resolved.start
    assert "std" not in resolved.start


def test_weights_that_nothing_is_said_of_take_imagenets_aloud(hub: Path) -> None:
    (hub / "config.json").unlink()
    resolved = job(starting(hub))
    assert resolved.recipe.model.mean == IMAGENET_MEAN
    assert "nothing beside them says their mean and std: ImageNet's" in resolved.start


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "state.json"])
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "torn",
        '{"pretrained_cfg": {"mean": [0.5]}, "image_mean": [0.5], "identity": {"model.mean": [0.5]}}',
        '{"pretrained_cfg": "half", "image_mean": "half", "identity": []}',
    ],
)
def test_an_odd_file_beside_them_is_passed_over_aloud(hub: Path, name: str, text: str) -> None:
    (hub / "config.json").unlink()
    (hub / name).write_text(text)
    resolved = job(starting(hub))
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert f"mean and std: ImageNet's; {name} beside them is passed over (" in resolved.start


def test_an_odd_config_does_not_hide_what_another_file_says(hub: Path) -> None:
    (hub / "config.json").write_text("[]")
    (hub / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": HALF, "resample": None}))
    resolved = job(starting(hub))
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (HALF, HALF)
    assert resolved.start.endswith(
        " as they were trained; config.json beside them is passed over (Expected `object`, got `array`)"
    )


def test_null_in_a_config_says_nothing(hub: Path) -> None:
    nothing = dict.fromkeys(("mean", "std", "interpolation"))
    for config in ({"pretrained_cfg": nothing}, {"pretrained_cfg": None}):
        (hub / "config.json").write_text(json.dumps(config))
        assert trained_with(starting(hub).model) == Trained()


@pytest.mark.slow
def test_the_mean_of_a_checkpoint_is_that_of_its_run(dataset: Dataset, tmp_path: Path) -> None:
    train_here(dataset, tmp_path / "run", replace(HERE, model=replace(HERE.model, mean=HALF, std=HALF)), max_steps=2)
    (weights,) = checkpoints(RunFolder(tmp_path / "run").checkpoints)
    assert trained_with(starting(weights).model) == Trained(HALF, HALF, "bicubic")
    resolved = job(starting(weights))
    assert (resolved.recipe.model.mean, resolved.recipe.model.std) == (HALF, HALF)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--model.mean", "123.675", "116.28", "103.53"],
            "--model.mean is 123.675 116.28 103.53; it must lie between 0 and 1 (divide values of 0 to 255 by 255).",
        ),
        (
            ["--model.std", "0", "0", "0"],
            "--model.std is 0.0 0.0 0.0; it must lie between 0 (not itself) and 1 (divide values of 0 to 255 by 255).",
        ),
    ],
)
def test_a_mean_of_0_to_255_and_a_deviation_of_0_are_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(BadRequest) as error:
        resolve(parse(TINY, arguments), REHEARSAL, Hosting())
    assert [problem.sentence for problem in error.value.problems] == [sentence]


@pytest.mark.parametrize("size", [200, 8])
def test_an_image_size_that_the_models_own_patch_does_not_divide_is_refused(size: int) -> None:
    model = Model(name="deit_tiny_patch16_224", img_size=size)
    with pytest.raises(BadRequest, match=f"--model.img-size {size} is not a multiple of the 16 px of the patches"):
        job(replace(TINY, model=model))
    job(replace(TINY, model=replace(model, img_size=208)))


@pytest.mark.slow
def test_a_run_says_what_it_starts_from_and_goes_on_without_it(
    hub: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = starting(hub)
    train_here(dataset, tmp_path / "whole", recipe, max_steps=4)
    said = capsys.readouterr().out
    assert f"weights   {hub}/model.safetensors: all as the model has it; mean 0.5 0.5 0.5, std 0.5" in said
    train_here(dataset, tmp_path / "run", recipe, max_steps=2)
    shutil.rmtree(hub)
    capsys.readouterr()
    train_here(dataset, tmp_path / "run", recipe, max_steps=4)
    assert "weights   " not in capsys.readouterr().out
    assert summary(tmp_path / "run")["weights_sha256"] == summary(tmp_path / "whole")["weights_sha256"]
    folder = RunFolder(tmp_path / "run")
    config = json.loads(folder.timm_config.read_text())
    assert config["pretrained_cfg"]["mean"] == list(HALF)
    for weights in (folder.path, checkpoints(folder.checkpoints)[0]):
        assert job(starting(weights)).start.startswith(f"{weights}/model.safetensors: all as the model has it; ")


def test_a_checkpoint_of_accelerate_is_taken(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    net = accelerator.prepare(build_model(TINY.model, 4, seed=3))
    accelerator.save_state(str(tmp_path))
    started = build_model(starting(tmp_path).model, 4, seed=0)
    assert torch.equal(started.head.weight, net.head.weight)


@pytest.mark.slow
def test_a_run_of_published_weights_goes_on_without_fetching_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, fetched = timm.create_model, []

    def fetch(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        fetched.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fetch)
    recipe = replace(UNSAID, model=replace(UNSAID.model, pretrained=True))
    train_here(dataset, tmp_path, recipe, max_steps=2)
    assert fetched.count(True) == 1
    fetched.clear()
    train_here(dataset, tmp_path, recipe, max_steps=4)
    assert fetched
    assert not any(fetched)
