"""`vitrail eval`."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from launch.trained import Trained, numbers_of, trained_model
from shards.dataset import Dataset, read_dataset
from shards.errors import BadRequest
from shards.files import read_json, write_json
from tests.running import metrics, run, vitrail
from tests.tiny import HERE


def evaluated(*arguments: Any, code: int = 0) -> dict[str, Any]:
    """Return what the verb says to scripts."""
    found: dict[str, Any] = json.loads(vitrail("eval", *arguments, "--json", code=code).stdout)
    return found


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_run_is_measured_as_it_measured_itself(trained: Path, dataset: Dataset, weights: str) -> None:
    found = evaluated(trained, "--data", dataset.folder, "--weights", weights)
    last = [line for line in metrics(trained, "eval") if line["weights"] == weights][-1]
    assert (found["samples"], found["of"], found["split"]) == (21, 21, "test")
    assert (found["top1"], found["top5"]) == (last["top1"], last["top5"])
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert sum(of["samples"] for of in found["classes"]) == 21
    assert sum(one["samples"] for one in found["confusions"]) == 21 - round(found["top1"] * 21)


def test_people_read_the_same_with_the_names_of_the_classes(trained: Path, dataset: Dataset) -> None:
    said = vitrail("eval", trained, "--data", dataset.folder).stdout
    assert "21/21 samples" in said
    assert "calibration error" in said
    assert all(name in said for name in dataset.classes)


@pytest.mark.dist
def test_two_processes_say_what_one_says(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    arguments = ["eval", str(trained), "--data", str(dataset.folder), "--data.workers", "0"]
    done = run("-m", "launch.cli", *arguments, "--json", processes=2)
    alone = evaluated(*arguments[1:])
    both = json.loads(done.stdout)
    assert both.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-6)
    assert both.pop("calibration_error") == pytest.approx(alone.pop("calibration_error"), rel=1e-6)
    assert both == alone


def test_any_split_size_crop_and_precision_can_be_asked_for(trained: Path, dataset: Dataset) -> None:
    other = ("--split", "train", "--model.img-size", 24, "--eval.crop-ratio", 1, "--precision", "bf16")
    found = evaluated(trained, "--data", dataset.folder, *other)
    assert (found["samples"], found["split"], found["img_size"]) == (70, "train", 24)
    assert (found["crop_ratio"], found["precision"]) == (1, "bf16")
    assert (
        "no split 'tset'; it has"
        in vitrail("eval", trained, "--data", dataset.folder, "--split", "tset", code=2).stderr
    )


def test_every_answer_is_written(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    found = evaluated(trained, "--data", dataset.folder, "--csv", tmp_path / "answers.csv")
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    index = dataset.splits["test"]
    assert [row["key"] for row in rows] == [index.key(sample) for sample in range(21)]
    assert sum(row["class"] == row["answer_1"] for row in rows) / 21 == found["top1"]
    assert sum(float(rows[0][f"probability_{place}"]) for place in range(1, 5)) == pytest.approx(1)
    refused = vitrail("eval", trained, "--data", dataset.folder, "--csv", tmp_path / "no" / "a.csv", code=2).stderr
    assert "name a file in a folder that is there" in refused


def test_a_model_of_timm_takes_the_weights_of_a_file_and_the_names_of_the_data(
    dataset: Dataset, tmp_path: Path
) -> None:
    import pipeline.model.nets  # noqa: F401

    torch.save({"state_dict": timm.create_model("resnet20_cifar", num_classes=4).state_dict()}, tmp_path / "w.pth")
    model = ("resnet20_cifar", "--data", dataset.folder, "--data.classes", 4)
    found = evaluated(*model, "--model.weights", tmp_path / "w.pth")
    assert (found["samples"], found["img_size"], found["crop_ratio"]) == (21, 32, 1)
    assert {of["class"] for of in found["classes"]} <= set(dataset.classes)
    assert "--model.weights is missing: no weights are published" in vitrail("eval", *model, code=2).stderr
    missing = vitrail("eval", *model, "--model.weights", tmp_path / "none.pth", code=2).stderr
    assert "no such file" in missing


def test_a_published_deit_is_checked_at_its_own_input(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    model = trained_model("deit_small_distilled_patch16_224.fb_in1k", "raw")
    assert model.recipe.model.pretrained
    assert (model.recipe.data.classes, model.recipe.eval.crop_ratio) == (1000, 0.9)
    assert (model.named(0), model.described(0)) == ("n01440764", "n01440764 tench, Tinca tinca")
    # random weights stand for the published ones, which are not here; the data's classes are numbers of the model's
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *words, **options: create(*words, **options | {"pretrained": False})
    )
    small = ("--model.depth", 1, "--model.img-size", 32, "--eval.crop-ratio", 0.875)
    found = evaluated("deit_tiny_patch16_224.fb_in1k", "--data", dataset.folder, *small)
    assert (found["weights"], found["samples"], found["crop_ratio"]) == ("published by timm", 21, 0.875)
    assert [of["class"] for of in found["classes"]] == ["n01440764", "n01443537", "n01484850", "n01491361"]


def test_the_folders_of_imagenet_v2_are_numbers_and_a_part_of_the_classes_goes_by_name(
    trained: Path, tmp_path: Path
) -> None:
    imagenet = trained_model("deit_tiny_patch16_224.fb_in1k", "raw")
    assert numbers_of(("0", "1", "10", "999"), imagenet)[0].tolist() == [0, 1, 10, 999]
    assert numbers_of(("n01443537", "n01440764"), imagenet)[0].tolist() == [1, 0]
    unnamed = Trained(replace(HERE), "a file")
    assert numbers_of(("a", "b", "c", "d"), unnamed)[0].tolist() == [0, 1, 2, 3]
    numbers, note = numbers_of(("a", "b", "c", "d"), replace(unnamed, classes=("ash", "b", "c", "d")))
    assert numbers.tolist() == [0, 1, 2, 3]
    assert "'a' in the data, 'ash' to the model" in note
    with pytest.raises(BadRequest, match="3 classes, the model knows 4"):
        numbers_of(("a", "b", "c"), unnamed)


def test_labels_of_real_go_by_the_names_of_the_images(trained: Path, tmp_path: Path, dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    for number in range(1, 9):  # keys keep the names of the files
        folder = tmp_path / "photos" / dataset.classes[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        picture.save(folder / f"ILSVRC2012_val_{number:08d}.png")
    vitrail("shards", "build", tmp_path / "photos", tmp_path / "shards", "--processes", 1)
    data = ("--data", tmp_path / "shards")
    write_json(tmp_path / "real.json", [[0, 1, 2, 3]] * 6 + [[], []])
    found = evaluated(trained, *data, "--real", tmp_path / "real.json")
    assert (found["real_top1"], found["real_samples"], found["samples"]) == (1, 6, 8)
    write_json(tmp_path / "real.json", [[0]])
    refused = vitrail("eval", trained, *data, "--real", tmp_path / "real.json", code=2).stderr
    assert "up to 1, and the sample" in refused
    write_json(tmp_path / "real.json", {"a": 1})
    refused = vitrail("eval", trained, *data, "--real", tmp_path / "real.json", code=2).stderr
    assert "a list of lists of numbers is needed" in refused
    assert "no such file" in vitrail("eval", trained, *data, "--real", tmp_path / "none", code=2).stderr


def test_a_sample_that_cannot_be_used_is_named_and_the_exit_code_says_it(
    trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(dataset.folder, tmp_path / "data")
    index = read_dataset(tmp_path / "data").splits["test"]
    with (index.folder / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.rows["offset"][3]) + 50)
        file.write(b"damaged")
    done = vitrail("eval", trained, "--data", tmp_path / "data", code=1)
    assert "20/21 samples" in done.stdout
    assert f"not usable: {index.tar(0)}: sample {index.key(3)!r}" in done.stderr
    for shard in index.shards:
        (index.folder / shard.name).write_bytes(bytes(shard.bytes))
    assert "none of the 21 samples" in vitrail("eval", trained, "--data", tmp_path / "data", code=1).stderr


def test_a_run_that_is_not_finished_is_measured_at_its_newest_checkpoint(
    trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for name in ("config.json", "model.safetensors", "model_ema.safetensors", "summary.json"):
        (folder / name).unlink()
    found = evaluated(folder, "--data", dataset.folder)
    assert found["weights"] == "raw weights of step 2, which is not the last"
    assert found["top1"] == evaluated(trained, "--data", dataset.folder)["top1"]
    # one that ended, as by --max-steps, and went on from there
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained / name, folder)
    write_json(folder / "summary.json", {**read_json(trained / "summary.json", dict), "steps": 1})
    found = evaluated(folder, "--data", dataset.folder)
    assert found["weights"] == "raw weights of step 2, which is not the last"
    for name in ("config.json", "model.safetensors", "summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    assert "has no weights yet" in vitrail("eval", folder, "--data", dataset.folder, code=2).stderr


def test_what_is_no_trained_model_is_said(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    data = ("--data", dataset.folder)
    assert "no folder of a run, and no model of timm" in vitrail("eval", "deit_smal", *data, code=2).stderr
    assert "neither the folder of a run" in vitrail("eval", tmp_path, *data, code=2).stderr
    (tmp_path / "config.json").write_text("{}")
    assert "not what timm or Vitrail writes" in vitrail("eval", tmp_path, *data, code=2).stderr
    shutil.copy(trained / "recipe.json", tmp_path)
    (tmp_path / "config.json").unlink()
    write_json(tmp_path / "recipe.json", {"recipe": {"name": 3}})
    assert "no recipe of this version" in vitrail("eval", tmp_path, *data, code=2).stderr
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model_ema.safetensors").unlink()
    said = vitrail("eval", tmp_path / "run", *data, "--weights", "ema", code=2).stderr
    assert "keeps no moving average" in said
    assert "--data is missing" in vitrail("eval", trained, code=2).stderr
    said = vitrail("eval", "deit_tiny_patch16_224.fb_in1k", *data, "--weights", "ema", code=2).stderr
    assert "--weights ema is for the folder of a run" in said


def test_two_heads_are_fused_as_the_recipe_says(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    began = json.loads((folder / "recipe.json").read_text())
    began["recipe"]["model"]["name"] = "deit_tiny_distilled_patch16_224"
    began["recipe"]["distill"] |= {"teacher": "local-dir:/gone", "fusion": "code"}
    write_json(folder / "recipe.json", began)
    raw = load_file(folder / "model.safetensors")
    positions = torch.cat([raw["pos_embed"][:, :1], raw["pos_embed"]], dim=1)
    heads = {f"head_dist.{part}": raw[f"head.{part}"].flip(0) for part in ("weight", "bias")}
    tensors = raw | heads | {"dist_token": raw["cls_token"], "pos_embed": positions}
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    code = evaluated(folder, "--data", dataset.folder)
    paper = evaluated(folder, "--data", dataset.folder, "--distill.fusion", "paper")
    assert code["loss"] == pytest.approx(paper["loss"], rel=0.1)
    assert code["loss"] != paper["loss"]
