import json
from pathlib import Path

import pytest
from PIL import Image

from shards.dataset import Dataset
from tests.conftest import run, traces, vitrail


def test_build_show_and_verify_of_the_embedded_data_set(tmp_path: Path) -> None:
    assert "1,437" in vitrail("shards", "build", "digits", tmp_path / "digits").stdout
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
        (("shards", "build", "digits", "{tmp}/out", "--samples-per-shard", "0"), "start at 1"),
    ],
)
def test_a_wrong_request_is_explained(dataset: Dataset, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    filled = [argument.format(tmp=tmp_path, data=dataset.folder) for argument in arguments]
    code = 1 if "show" in filled else 2
    assert words in vitrail(*filled, code=code).stderr


def test_order_prints_the_views_that_a_run_traces(dataset: Dataset, script: Path, tmp_path: Path) -> None:
    run(script, "--data", dataset.folder, "--output", tmp_path, "--trace-samples", "--max-steps", 7)
    for epoch, step in ((0, 0), (1, 1)):
        options = ("--data", dataset.folder, "--epoch", epoch, "--step", step, "--json")
        printed = json.loads(vitrail("order", script, *options).stdout)
        traced = [line for line in traces(tmp_path) if line["step"] == epoch * 5 + step]
        expected = [
            {"virtual_rank": line["virtual_rank"], "slot": slot, "key": key, "copy": copy}
            for line in traced
            for slot, (key, copy) in enumerate(line["views"])
        ]
        assert printed == expected


def test_preview_draws_the_images_as_the_model_sees_them(dataset: Dataset, script: Path, tmp_path: Path) -> None:
    vitrail("preview", script, "--data", dataset.folder, "--output", tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert min(picture.size) > 200


def test_help_names_every_verb() -> None:
    shown = vitrail("--help").stdout
    assert all(verb in shown for verb in ("shards", "order", "preview"))


def test_the_ladder_compares_strategies_and_goes_on_where_it_was(
    dataset: Dataset, script: Path, tmp_path: Path
) -> None:
    flags = ("ladder", script, "--data", dataset.folder, "--output", tmp_path / "ladder", "--epochs", 1)
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
