import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import cli
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import ENVIRONMENT, SCRIPT, traces, train_here, vitrail, vitrail_process


def test_build_show_and_verify_of_the_embedded_data_set(tmp_path: Path) -> None:
    assert "1,437" in vitrail("shards", "build", "digits", tmp_path / "digits", "--processes", 1).stdout
    shown = json.loads(vitrail("shards", "show", tmp_path / "digits", "--json").stdout)
    assert shown["splits"]["test"]["samples"] == 360
    assert "all 1,797 samples" in vitrail("shards", "verify", tmp_path / "digits").stdout
    tar = tmp_path / "digits" / "train" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert "000001.tar: 5000 bytes" in vitrail("shards", "verify", tmp_path / "digits", code=1).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shards", "build", "/nothing", "{tmp}/out"), "/nothing: no such file or folder"),
        (("shards", "show", "/nothing"), "/nothing: no such folder. Build one with"),
        (("order", "deit_smal", "--data", "{data}"), "deit_smal: no such recipe or file. Recipes: deit_small"),
        (
            ("shards", "build", "digits", "{tmp}/out", "--samples-per-shard", "0"),
            "--samples-per-shard is 0; it starts at 1",
        ),
    ],
)
def test_a_wrong_request_is_explained(dataset: Dataset, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    filled = [argument.format(tmp=tmp_path, data=dataset.folder) for argument in arguments]
    code = 1 if "show" in filled else 2
    assert words in vitrail(*filled, code=code).stderr


@pytest.mark.slow
def test_order_prints_the_views_that_a_run_traces(dataset: Dataset, tmp_path: Path) -> None:
    train_here(dataset, tmp_path, trace_samples=True, max_steps=7)
    for epoch, step in ((0, 0), (1, 1)):
        options = ("--data", dataset.folder, "--epoch", epoch, "--step", step, "--json")
        printed = json.loads(vitrail("order", SCRIPT, *options).stdout)
        traced = [line for line in traces(tmp_path) if line["step"] == epoch * 5 + step]
        expected = [
            {"virtual_rank": line["virtual_rank"], "slot": slot, "key": key, "copy": copy}
            for line in traced
            for slot, (key, copy) in enumerate(line["views"])
        ]
        assert printed == expected


def test_preview_draws_the_images_as_the_model_sees_them(dataset: Dataset, tmp_path: Path) -> None:
    # without augmentation and mixing an image, its views and what the model sees are the same pixels
    plain = ("--augment.crop", "whole", "--augment.rand-ops", "0", "--augment.flip", "0", "--augment.erase", "0")
    plain += ("--mix.prob", "0", "--eval.crop-ratio", "1")
    for name, flags in (("plain", plain), ("augmented", ())):
        output = str(tmp_path / f"{name}.png")
        assert cli.call("preview", [str(SCRIPT), "--data", str(dataset.folder), "--output", output, *flags]) == 0
    pictures = {}
    for name in ("plain", "augmented"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures[name] = np.asarray(picture.convert("RGB")).astype(int)
    assert pictures["plain"].shape == pictures["augmented"].shape

    def columns(pixels: np.ndarray) -> list[np.ndarray]:
        """Return the middles of the six columns of pictures."""
        width = pixels.shape[1] / 6
        return [pixels[60:, int(width * (column + 0.4)) : int(width * (column + 0.4)) + 20] for column in range(6)]

    original, *views = columns(pictures["plain"])
    assert all(abs(view - original).mean() < 8 for view in views)
    original, *views = columns(pictures["augmented"])
    assert any(abs(view - original).mean() > 8 for view in views)


@pytest.mark.dist
def test_help_names_every_verb_and_every_verb_has_help() -> None:
    shown = vitrail_process("--help").stdout
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if "\nVERB: Final" in path.read_text()}
    assert set(cli.VERBS) == modules
    for verb in cli.VERBS:
        assert f"\n  {verb} " in shown
        with pytest.raises(SystemExit) as ended:
            cli.call(verb, ["--help"])
        assert ended.value.code == 0


@pytest.mark.dist
def test_a_misspelt_verb_names_the_nearest() -> None:
    assert "'pln' is no verb; did you mean plan?" in vitrail_process("pln", code=2).stderr


ONE = ("--gpus-per-node", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["plan", SCRIPT, *ONE, "--gpu-per-node", "4"],
            "--gpu-per-node is not known here; did you mean --gpus-per-node?",
        ),
        (["plan", SCRIPT, *ONE, "--optim.lrr", "4"], "--optim.lrr is not known here; did you mean --optim.lr?"),
        (["bench", "step", SCRIPT, "--jsn"], "--jsn is not known here; did you mean --json?"),
        (["shards", "verify", "x", "--jsn"], "--jsn is not known here; did you mean --json?"),
    ],
)
def test_a_misspelt_option_of_a_verb_names_the_nearest_alone(arguments: list[object], words: str) -> None:
    verb, *others = map(str, arguments)
    with pytest.raises(BadRequest) as caught:
        cli.call(verb, others)
    assert str(caught.value) == words


@pytest.mark.dist
@pytest.mark.parametrize("verb", ["shards", "--help"])
def test_what_needs_no_model_does_not_import_torch(verb: str, dataset: Dataset) -> None:
    arguments = ["shards", "show", str(dataset.folder)] if verb == "shards" else [verb]
    command = [sys.executable, "-X", "importtime", "-m", "launch.cli", *arguments]
    imported = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stderr
    names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
    assert "launch.cli" in imported or "shards.errors" in names
    assert not names & {"torch", "timm", "torchvision", "accelerate", "matplotlib", "sklearn"}


@pytest.mark.slow
def test_the_ladder_compares_strategies_and_goes_on_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    flags = ("ladder", SCRIPT, "--data", dataset.folder, "--output", tmp_path / "ladder", "--epochs", 1)
    assert "K goes in halves, up to its 2 blocks" in vitrail(*flags, "--rungs", "linear", "partial-3", code=2).stderr
    assert not (tmp_path / "ladder").exists()
    rungs = ("--rungs", "linear", "partial-1/2", "full", "gradual")
    assert "trained parameters" in vitrail(*flags, *rungs).stdout
    assert "all 5 steps are done" in vitrail(*flags, *rungs).stdout
    found = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    assert [rung["strategy"] for rung in found] == ["linear", "partial-1/2", "full", "gradual"]
    assert found[0]["trained"] == 33 * 4
    assert found[0]["trained"] < found[1]["trained"] < found[2]["trained"] == found[3]["trained"]
    assert (tmp_path / "ladder" / "ladder.png").stat().st_size > 10_000
