"""`vitrail export`: what it writes is loaded by others alone, in other processes."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from launch import export
from launch.card import last_scores, without_folders
from launch.cli import call
from launch.export import Exported
from launch.trained import trained_model
from pipeline.config import Distill
from pipeline.model.build import build_model
from pipeline.model.hub import timm_config
from shards.dataset import Dataset
from shards.errors import VitrailError
from shards.files import read_json, write_json
from tests.hub import models_hub
from tests.running import ENVIRONMENT, TIMEOUT, vitrail
from tests.tiny import HERE

# what each library does alone, without Vitrail: logits of given images, and the names of the classes
ALONE = {
    "timm": """
import timm
net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
logits, names = net(images), net.pretrained_cfg["label_names"]
size, mean = net.pretrained_cfg["input_size"], net.pretrained_cfg["mean"]
""",
    "onnx": """
import json, onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
config = json.loads(session.get_modelmeta().custom_metadata_map["config.json"])
names, size, mean = config["label_names"], config["pretrained_cfg"]["input_size"], config["pretrained_cfg"]["mean"]
""",
    "torch": """
import json
extra = {"config.json": ""}
net = torch.export.load(f"{folder}/model.pt2", extra_files=extra).module()
logits, config = net(images), json.loads(extra["config.json"])
names, size, mean = config["label_names"], config["pretrained_cfg"]["input_size"], config["pretrained_cfg"]["mean"]
""",
}
PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file
folder, given, taken = sys.argv[1:]
images = load_file(given)["images"]
with torch.inference_mode():
{alone}
assert not [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "launch", "shards")]
save_file({{"logits": logits.contiguous()}}, taken, metadata={{"said": repr((list(names), list(size), list(mean)))}})
"""


def logits_alone(form: str, folder: Path, images: torch.Tensor, scratch: Path) -> tuple[torch.Tensor, str]:
    """Return the logits that a library gives in a process of its own, and what it knows of classes and input."""
    from safetensors import safe_open

    save_file({"images": images}, scratch / "given.safetensors")
    indented = "".join(f"    {line}\n" for line in ALONE[form].strip().splitlines())
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(alone=indented), str(folder)]
    files = [str(scratch / "given.safetensors"), str(scratch / "taken.safetensors")]
    done = subprocess.run([*program, *files], cwd=scratch, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    with safe_open(files[1], "pt") as taken:
        return taken.get_tensor("logits"), taken.metadata()["said"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ALONE)
def test_a_round_trip_gives_the_same_logits_and_the_names_of_the_classes(
    form: str, trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    said = vitrail("export", trained, "--weights", "ema", "--to", form, "--output", folder).stdout
    assert "ema weights of deit_tiny_patch16_224, 4 class names" in said
    assert f"logits of 8 images of {dataset.folder}, test, differ by at most" in said
    net = build_model(trained_model(str(trained), "ema").recipe.model, 4, 0).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, known = logits_alone(form, folder, images, tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(logits, net(images), atol=1e-4, rtol=1e-4)
    assert known == repr((list(dataset.classes), [3, 16, 16], list(HERE.model.mean or ())))


def test_the_card_says_what_the_model_is_and_where_it_comes_from(
    trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    vitrail("export", trained, "--to", "timm", "--output", folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert {result.metric_type for result in card.data.eval_results or []} == {"accuracy"}
    began = read_json(trained / "recipe.json", dict[str, Any])
    for part in ("raw weights", "| test | raw |", "| test | ema |", "| data | `shards` |", "timm.create_model",
                 began["fingerprints"]["training data"], began["versions"]["torch"], '"lr": 0.001'):  # fmt: skip
        assert part in card.text
    assert str(dataset.folder) not in card.content  # a card is for everybody
    assert "pipeline.model.nets" not in card.text  # timm has the network
    # what was exported is a trained model again
    data = ("--data", dataset.folder, "--json")
    again, before = (json.loads(vitrail("eval", name, *data).stdout) for name in (folder, trained))
    assert {**again, "weights": ""} == {**before, "weights": ""}


def test_the_card_has_the_scores_of_the_weights_that_are_exported(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    later = {"kind": "eval", "step": 99, "epoch": 9.0, "split": "test", "weights": "raw", "top1": 0.1234}
    with (run / "metrics.jsonl").open("a") as file:  # with --checkpoint.best the newest are not the exported ones
        file.write(json.dumps(later) + "\n")
    steps = {line["step"] for line in last_scores(trained_model(str(run), "raw"))}
    assert steps == {read_json(run / "summary.json", dict[str, Any])["exported_step"]}


def test_the_card_has_no_folders_of_the_machine_that_the_run_was_made_on(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    began = json.loads((run / "recipe.json").read_text())
    elsewhere = tmp_path / "home/mary"  # of which nothing is here any more
    began["recipe"]["model"]["weights"] = f"{elsewhere}/start.pth"
    began["recipe"]["data"]["cache"] = f"{elsewhere}/cache/"
    began["recipe"]["distill"] |= {"teacher": f"local-dir:{elsewhere}/taught", "store": "mary/store", "token": False}
    write_json(run / "recipe.json", began)
    vitrail("export", run, "--to", "timm", "--output", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mary" not in card
    assert str(tmp_path) not in card
    shown = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert shown["model"]["weights"] == "start.pth"
    assert shown["data"]["cache"] == "cache"
    assert (shown["distill"]["teacher"], shown["distill"]["store"]) == ("local-dir:taught", "store")
    assert shown["optim"] == began["recipe"]["optim"]


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/data/imagenet", "imagenet"),
        ("/gone/{000..099}.tar", "{000..099}.tar"),
        ("", ""),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("hf://datasets/owner/name@main/train-*.tar", "hf://datasets/owner/name@main/train-*.tar"),
        ("https://mary:secret@host:8080/data?signature=abc", "https://host:8080/data"),
    ],
)
def test_a_place_is_called_without_what_is_nobody_elses_concern(place: str, shown: str) -> None:
    assert without_folders(place) == shown


@pytest.mark.slow
def test_the_code_of_the_card_of_one_of_our_networks_runs_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "model"
    as_named = replace(HERE.model, name="vitc_1gf", patch_size=None, width=None, depth=None, heads=None)
    run.mkdir()
    write_json(run / "recipe.json", {"recipe": asdict(replace(HERE, model=as_named))})
    write_json(run / "config.json", timm_config(replace(HERE, model=as_named), dataset.classes, None))
    save_file(build_model(as_named, 4, 0).state_dict(), run / "model.safetensors")
    vitrail("export", run, "--to", "timm", "--data", dataset.folder, "--output", folder)
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "pip install vitrail" in code
    image = 'from PIL import Image\nimage = Image.new("RGB", (40, 40), "red")\n'
    program = f"{image}{code.replace('FOLDER', str(folder))}assert logits.shape == (1, 4) and len(names) == 4"
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=TIMEOUT)


def test_formats_of_a_model_share_a_folder_and_nothing_else_does(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for _ in range(2):  # the second time it is written anew
        vitrail("export", trained, "--to", "timm", "--output", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (folder / "notes.txt").touch()
    said = vitrail("export", trained, "--to", "timm", "--output", folder, code=2).stderr
    assert "holds what no export wrote (notes.txt)" in said
    assert (
        "a file; name a folder"
        in vitrail("export", trained, "--to", "timm", "--output", folder / "notes.txt", code=2).stderr
    )
    assert (
        "holds what no export wrote" in vitrail("export", trained, "--to", "timm", "--output", trained, code=2).stderr
    )


def test_the_data_of_a_run_is_found_again_or_asked_for(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "sessions.jsonl").unlink()
    asked = ("export", folder, "--to", "timm", "--output", tmp_path / "model")
    assert "--data is missing" in vitrail(*asked, code=2).stderr
    assert "differ by at most" in vitrail(*asked, "--data", dataset.folder).stdout


def distilled(trained: Path, folder: Path, fusion: str) -> Path:
    """Make the folder of a run with two heads of the folder of one with one."""
    shutil.copytree(trained, folder)
    began = json.loads((folder / "recipe.json").read_text())
    began["recipe"]["model"]["name"] = "deit_tiny_distilled_patch16_224"
    began["recipe"]["distill"] |= {"teacher": "resnet20_cifar", "fusion": fusion}
    write_json(folder / "recipe.json", began)
    raw = load_file(folder / "model.safetensors")
    positions = torch.cat([raw["pos_embed"][:, :1], raw["pos_embed"]], dim=1)
    generator = torch.Generator().manual_seed(0)
    second = {
        f"head_dist.{part}": torch.randn(raw[f"head.{part}"].shape, generator=generator) for part in ("weight", "bias")
    }
    tensors = raw | second | {"dist_token": raw["cls_token"].clone(), "pos_embed": positions}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_two_heads_are_fused_as_they_were_or_refused_with_the_reason(trained: Path, tmp_path: Path) -> None:
    run = distilled(trained, tmp_path / "run", "paper")
    asked = ("export", run, "--to", "timm", "--output", tmp_path / "model")
    assert "timm means the logits of the two heads" in vitrail(*asked, code=2).stderr
    said = vitrail(*asked, "--distill.fusion", "code").stdout
    assert "two heads, fused by timm: the mean of the logits" in said
    assert "two heads" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_program_keeps_the_fusion_of_two_heads(trained: Path, tmp_path: Path) -> None:
    run = distilled(trained, tmp_path / "run", "paper")
    said = vitrail("export", run, "--to", "torch", "--output", tmp_path / "model").stdout
    assert "two heads, fused as in the run: the logarithm of the sum of the softmaxes" in said
    images = torch.randn(3, 3, 16, 16)
    logits = torch.export.load(tmp_path / "model" / "model.pt2").module()(images)
    assert torch.allclose(logits.exp().sum(1), torch.full((3,), 2.0), atol=1e-5)  # of two softmaxes


def test_what_cannot_be_exported_is_refused_at_once(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    wrong = ("--to", "timm", "--output", tmp_path / "model", "--push", "alone", "--eval.batch", 0)
    said = vitrail("export", trained, *wrong, code=2).stderr
    assert "--push alone: write it as OWNER/NAME." in said
    assert "--eval.batch is 0" in said
    bad = vitrail("export", trained, *wrong[:4], "--push", "a/b/c", code=2).stderr
    assert "--push a/b/c: " in bad
    torchvisions = ("torchvision:resnet18", "--data", dataset.folder, "--to", "timm", "--output", tmp_path / "model")
    assert "is torchvision's; take --to onnx or torch" in vitrail("export", *torchvisions, code=2).stderr
    assert not (tmp_path / "model").exists()


def test_a_file_that_answers_otherwise_takes_no_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    arguments = [str(trained), "--to", "torch", "--output", str(folder)]
    assert call("export", arguments) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(export, "LOADERS", {"torch": lambda file: lambda images: torch.ones(len(images), 4)})
    with pytest.raises(VitrailError, match="not written, as its logits would differ"):
        call("export", arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_without_names_of_classes_says_none() -> None:
    assert "label_names" not in timm_config(HERE, (), 32)
    recipe = replace(HERE, distill=Distill(teacher="resnet20_cifar", token=False))
    assert not export.has_two_heads(recipe)
    assert Exported(torch.nn.Identity(), recipe)(torch.ones(2, 4)).tolist() == [[1.0] * 4] * 2


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_a_folder_is_pushed_to_the_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("export", trained, "--to", "timm", "--output", tmp_path / "model", "--push", "mary/net")
    with models_hub(tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        left = tmp_path / "model" / "part-of-a-kill"
        left.mkdir(parents=True)
        (left / "model.safetensors").touch()
        said = vitrail(*asked).stdout
        assert "pushed to" in said
        shutil.rmtree(left)
        there = {path.name: path.read_bytes() for path in (tmp_path / "hub/mary/net").iterdir()}
        assert there == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        served.closed = True
        refused = vitrail(*asked, code=1).stderr
        assert "the hub did not take it" in refused
        assert "hf auth login" in refused
