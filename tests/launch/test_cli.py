import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import cli
from pipeline.config import Finetune
from pipeline.request import parse
from shards.dataset import Dataset, write_dataset
from shards.errors import BadRequest
from shards.index import Index, Shard, row_dtype, write_index
from tests.flags import verb_flags
from tests.running import ENVIRONMENT, SCRIPT, TIMEOUT, run, traces, train_here, vitrail, vitrail_process
from tests.tiny import TINY


def test_build_show_and_verify_of_the_embedded_data_set(tmp_path: Path) -> None:
    assert "1,437" in vitrail("shards", "build", "digits", tmp_path / "digits", "--processes", 1).stdout
    shown = json.loads(vitrail("shards", "show", tmp_path / "digits", "--json").stdout)
    assert shown["splits"]["test"]["samples"] == 360
    assert "all 1,797 samples" in vitrail("shards", "verify", tmp_path / "digits").stdout
    tar = tmp_path / "digits" / "train" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert "000001.tar: 5000 bytes" in vitrail("shards", "verify", tmp_path / "digits", code=1).stdout


@pytest.mark.dist
def test_the_verbs_of_shards_import_no_torch(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), "red" if name == "cat" else "blue").save(tmp_path / "photos" / name / "0.png")
    calls = (
        ["build", "photos", "data", "--resize-shorter", "4", "--json"],
        *([verb, "data", "--json"] for verb in ("index", "verify", "show")),
    )
    program = f"""
import sys
from launch.cli import call
for words in {calls!r}:
    call("shards", words)
heavy = {{"torch", "torchvision", "timm", "accelerate", "webdataset", "sklearn", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=TIMEOUT)


def test_help_imports_next_to_nothing() -> None:
    program = """
import sys
from launch.cli import chosen
try:
    chosen(["--help"])
except SystemExit:
    pass
assert not {"torch", "numpy", "PIL", "tyro"} & sys.modules.keys()
"""
    subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL
    )


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


def test_show_scores_the_shuffle_of_sorted_shards_and_names_the_window_that_would_do(tmp_path: Path) -> None:
    index = write_sorted(tmp_path)
    shown = vitrail("shards", "show", tmp_path).stdout
    found = json.loads(vitrail("shards", "show", tmp_path, "--json").stdout)["shuffle"]
    assert found["score"] < 0.8
    assert 8192 < found["enough"] <= len(index) / 16
    assert f"the shards are sorted by class, --data.window {found['enough']} would do" in " ".join(shown.split())


def write_sorted(folder: Path) -> Index:
    """Write the index of 400,000 samples that lie sorted by class, and what `show` reads of a data set beside it."""
    rows = np.zeros(400_000, row_dtype(8))
    rows["label"] = np.repeat(np.arange(400), 1000)
    (folder / "train").mkdir()
    parts = [(Shard(f"{number:06d}.tar", 1000, 0), rows[number * 1000 :][:1000]) for number in range(400)]
    index = write_index(folder / "train", parts)
    write_dataset(folder, [str(label) for label in range(400)], {"train": index})
    return index


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


def test_order_and_plan_need_no_tars_beside_the_indexes_and_preview_does(dataset: Dataset, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset.folder, data, ignore=shutil.ignore_patterns("*.tar"))
    for verb in ("order", "plan"):
        options = ("--gpus-per-node", 1) if verb == "plan" else ()
        said = [vitrail(verb, SCRIPT, "--data", folder, "--json", *options).stdout for folder in (data, dataset.folder)]
        assert said[0] == said[1]
    options = ("--data", data, "--output", tmp_path / "views.png")
    assert "Copy these shards again" in vitrail("preview", SCRIPT, *options, code=2).stderr


def test_order_shows_any_step_of_data_that_is_made_up() -> None:
    made_up = ("order", "deit_small", "--simulate", "shards=1e6,samples=1e10,ranks=16384", "--epoch", 3, "--step", 5000)
    printed = vitrail(*made_up, "--rank", 77).stdout.splitlines()
    assert len(printed) == 64
    assert printed[0].split("\t")[:2] == ["77", "0"]
    views = json.loads(vitrail(*made_up, "--rank", 77, "--json").stdout)
    assert [view["copy"] for view in views[:4]] != [view["copy"] for view in views[1:5]]
    places = [tuple(map(int, view["key"].split("/"))) for view in views]
    assert all(shard < 1e6 and place < 1e4 for shard, place in places)
    assert len(set(places)) == 22  # 64 views, three of each


def test_data_that_is_made_up_has_every_place_of_its_shards() -> None:
    options = ("--simulate", "shards=3,samples=11", "--data.repeats", 1, "--batch", 11, "--virtual-ranks", 1)
    views = json.loads(vitrail("order", "deit_small", *options, "--json").stdout)
    sizes = ((0, 4), (1, 4), (2, 3))
    assert sorted(view["key"] for view in views) == [
        f"{shard}/{place}" for shard, size in sizes for place in range(size)
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--simulate", "shards=2,rank=1"), "cannot be read; write it as shards=1e6,samples=1e10,ranks=16384."),
        (("--simulate", "many"), "cannot be read"),
        (("--simulate", "shards=9,samples=4"), "a shard has one sample at least"),
        (("--simulate", "shards=1,samples=4"), "--batch 1024 is more than the 4 images there are"),
        (("--simulate", "shards=1,samples=4", "--batch", "-1"), "--batch is -1; it must be at least 1"),
        (("--simulate", "shards=1,samples=4", "--sed", 3), "did you mean --seed?"),
        (("--simulate", "shards=9,samples=1e5", "--rank", 16), "--rank 16: the virtual ranks are 0 to 15 here."),
        (("--simulate", "shards=9,samples=1e5", "--data", "here"), "--simulate makes up the data; leave --data out."),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(arguments: tuple[object, ...], words: str) -> None:
    assert words in vitrail("order", "deit_small", *arguments, code=2).stderr


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


@pytest.mark.parametrize(
    ("output", "written"), [("views", "views.png"), ("folder", "folder.png"), ("views.JPG", "views.JPG")]
)
def test_preview_says_which_file_it_wrote(
    dataset: Dataset, tmp_path: Path, output: str, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    cli.call("preview", [str(SCRIPT), "--data", str(dataset.folder), "--output", str(tmp_path / output)])
    assert capsys.readouterr().out == f"{tmp_path / written}\n"
    assert (tmp_path / written).is_file()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("views.mp4", r"views\.mp4: no picture ends in \.mp4; name a \.png"),
        ("folder.png", r"folder\.png: a folder"),
        (".", r"--output \.: a folder"),
    ],
)
def test_preview_refuses_what_is_no_picture_with_all_else_that_is_wrong(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=words) as caught:
        cli.call("preview", [str(SCRIPT), "--data", str(dataset.folder), "--output", output, "--seed", "-1"])
    assert {problem.field for problem in caught.value.problems} == {"output", "seed"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_vitrail_alone_says_what_one_can_do_by_purpose_on_one_screen() -> None:
    shown = vitrail().stdout
    assert shown == vitrail("--help").stdout == vitrail("-h").stdout
    assert len(shown.splitlines()) <= 40
    assert max(map(len, shown.splitlines())) <= 100
    for purpose, verbs in cli.PURPOSES.items():
        group = shown.partition(f"{purpose}:\n")[2].splitlines()[: len(verbs)]
        assert [line.split()[0] for line in group] == list(verbs)
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if "\nVERB: Final" in path.read_text()}
    assert {name.replace("-", "_") for name in cli.VERBS} == modules


def test_the_help_of_a_verb_fits_a_screen_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for words in verb_flags():
        verb, *rest = words.split()
        with pytest.raises(SystemExit) as ended:
            cli.call(verb, [*rest, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert len(shown.splitlines()) <= 48, words
        assert f"Example: vitrail {words}" in " ".join(shown.split()) or words == "recipes", words
        assert "\x1b" not in shown  # colours are for terminals


@pytest.mark.dist
def test_no_colour_where_it_is_not_wanted() -> None:
    """Of a terminal that says NO_COLOR, and of everything that is no terminal."""
    program = "import sys; from launch.cli import call; sys.exit(call(sys.argv[1], sys.argv[2:]))"
    for options, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        main, other = os.openpty()
        inherited = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"}
        environment = {**inherited, "TERM": "xterm-256color", **options}
        command = [sys.executable, "-c", program, "shards", "show", "--help"]
        subprocess.run(command, env=environment, stdout=other, check=True, timeout=TIMEOUT)
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # the end, where nobody writes any more
            while part := os.read(main, 65536):
                shown += part
        os.close(main)
        assert (re.search(rb"\x1b\[[0-9;]*(3[0-9]|9[0-9])", shown) is not None) == coloured
        assert b"vitrail shards" in shown or b"Count and describe" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_verbs_and_options(shell: str) -> None:
    script = vitrail("completion", shell).stdout
    assert all(name in script for name in cli.VERBS)
    assert "--images-per-second" in script  # of plan
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=TIMEOUT)


@pytest.mark.dist
def test_a_misspelt_verb_names_the_nearest() -> None:
    assert "'pln' is no verb; did you mean plan?" in vitrail_process("pln", code=2).stderr
    assert "'frobnicate' is no verb; `vitrail` alone lists them." in vitrail("frobnicate", code=2).stderr


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


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (("order", SCRIPT), {"data"}),
        (("plan", SCRIPT, *ONE), {"data", "output"}),
        (("doctor", SCRIPT), {"data", "output"}),
        (("drill", SCRIPT), {"data"}),
        (("bench", "step", SCRIPT), {"data"}),
        (("slurm", SCRIPT), {"data", "output", "max_steps", "resume", "dry_run", "trace_samples"}),
        (("teach", SCRIPT), {"data", "output"}),
        (("ladder", SCRIPT, "--rungs", "full"), {"data", "output", "max_steps", "resume", "trace_samples"}),
        (("eval", "resnet20_cifar", "--model.weights", "x"), {"data"}),
        (("predict", "resnet20_cifar", "x.png", "--model.weights", "x"), set()),
    ],
)
def test_a_verb_refuses_the_flags_of_a_run_that_nothing_reads_there_with_all_else_that_is_wrong(
    words: tuple[object, ...], read: set[str], tmp_path: Path
) -> None:
    verb, *others = map(str, words)
    others += ["--data", f"{tmp_path}/none", "--output", str(tmp_path), "--max-steps", "3", "--resume", "never"]
    with pytest.raises(BadRequest) as caught:
        cli.call(verb, [*others, "--dry-run", "--trace-samples", "--seed", "-1"])
    found = caught.value.problems
    refused = {problem.field for problem in found if problem.sentence.endswith("nothing reads it here; leave it out.")}
    assert refused == {"data", "output", "max_steps", "resume", "dry_run", "trace_samples"} - read
    assert "seed" in {problem.field for problem in found}


def test_a_flag_of_a_run_that_says_what_is_so_anyway_is_no_problem() -> None:
    asked = ["--resume", "auto", "--max-steps", "0"]
    assert parse(TINY, asked, reads=()).unknown == ()


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


@pytest.mark.slow
def test_the_ladder_runs_each_strategy_with_each_seed_and_says_the_interval(dataset: Dataset, tmp_path: Path) -> None:
    flags = ("ladder", SCRIPT, "--data", dataset.folder, "--output", tmp_path, "--epochs", 1, "--max-steps", 1)
    assert "± " in vitrail(*flags, "--rungs", "linear", "full", "--seeds", 1, 2, 3).stdout
    found = json.loads((tmp_path / "ladder.json").read_text())
    assert [(rung["strategy"], list(rung["seeds"])) for rung in found] == [(name, ["1", "2", "3"])
                                                                           for name in ("linear", "full")]  # fmt: skip
    for rung in found:
        for seed, top1 in rung["seeds"].items():
            assert json.loads((tmp_path / f"{rung['strategy']}-seed-{seed}/summary.json").read_text())["top1"] == top1
        assert rung["top1"] == pytest.approx(sum(rung["seeds"].values()) / 3)


@pytest.mark.dist
@pytest.mark.slow
def test_processes_climb_a_ladder_together_and_one_of_them_tells(dataset: Dataset, tmp_path: Path) -> None:
    flags = ("--data", dataset.folder, "--output", tmp_path, "--epochs", 1, "--max-steps", 1, "--rungs", "linear")
    assert run("-m", "launch.cli", "ladder", SCRIPT, *flags, processes=2).stdout.count("trained parameters") == 1


def test_the_rate_of_the_head_alone_is_for_the_gradual_rung() -> None:
    from launch.ladder import on_rung

    recipe = replace(TINY, finetune=Finetune(strategy="gradual", head_epochs=1, head_lr=0.5))
    assert on_rung(recipe, "gradual").finetune == recipe.finetune
    assert on_rung(recipe, "linear").finetune == Finetune(strategy="linear")


def test_an_interval_is_students() -> None:
    from launch.ladder import interval

    # mean 2, deviation 1, n = 3: t(0.975, 2) = 4.30265
    assert interval([1, 2, 3]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert interval([1]) is None


@pytest.mark.dist
def test_a_reader_that_has_enough_is_no_error_to_speak_of(dataset: Dataset) -> None:
    command = [str(Path(sys.executable).parent / "vitrail"), "shards", "show", str(dataset.folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
