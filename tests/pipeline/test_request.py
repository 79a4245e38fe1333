"""What a command line asks for, before anybody judges it."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import call
from pipeline.config import Distill
from pipeline.request import at_home, parse
from shards.errors import BadRequest
from tests.tiny import TINY


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_folder_wherever_a_path_is_asked_for(home: Path) -> None:
    asked = ["--data=~/data", "--output=~/run", "--resume", "~/run/checkpoints/step-00000002"]
    asked += ["--model.weights=~/w.pth", "--distill.teacher=local-dir:~/teacher", "--distill.weights", "~/t.pth"]
    request = parse(TINY, [*asked, "--distill.store=~/store"])
    recipe = request.recipe
    assert [request.data, request.output, request.resume] == [
        f"{home}/{name}" for name in ("data", "run", "run/checkpoints/step-00000002")
    ]
    assert (recipe.model.weights, recipe.distill.teacher) == (f"{home}/w.pth", f"local-dir:{home}/teacher")
    assert (recipe.distill.weights, recipe.distill.store) == (f"{home}/t.pth", f"{home}/store")


def test_a_tilde_in_a_recipes_own_values_is_the_home_folder_too(home: Path) -> None:
    recipe = replace(TINY, distill=Distill(teacher="local-dir:~/teacher", store="~/store"))
    distill = parse(recipe, []).recipe.distill
    assert (distill.teacher, distill.store) == (f"local-dir:{home}/teacher", f"{home}/store")


def test_nothing_but_a_tilde_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/elsewhere")
    for kept in ("$DATA/x", "data~/x", "./~/x", "~nobody-of-this-name/x", "digits", ""):
        assert at_home(kept) == kept
    assert at_home(Path("~/x")) == home / "x"


def test_verbs_expand_it_in_their_own_options(home: Path) -> None:
    assert call("shards", ["build", "digits", "~/digits", "--processes=1", "--samples-per-shard=2000"]) == 0
    assert call("shards", ["verify", "~/digits"]) == 0
    (home / "mine.py").write_text("from recipes.deit_digits import RECIPE\n")
    assert call("preview", ["~/mine.py", "--data=~/digits", "--output=~/views.png"]) == 0
    assert (home / "views.png").exists()


@pytest.mark.parametrize("char", ["\n", "\r", "\x1b", "\0", "\x9b"])
def test_arguments_with_control_characters_are_all_refused(char: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(TINY, ["--name", f"a{char}b", f"--data=x{char}", "--output", "o"])
    assert [problem.field for problem in caught.value.problems] == ["name", "data"]
    assert char not in str(caught.value).replace("\n", "", 1)  # that between the two
    with pytest.raises(BadRequest, match=r"--partition 'a.*b' holds a control character"):
        call("slurm", ["deit_digits", "--partition", f"a{char}b"])


@pytest.mark.parametrize("name", ["ein Ordner mit Größe", "データ", "👩‍🔬", "a[b]$c"])
def test_other_letters_are_welcome(name: str) -> None:
    assert parse(TINY, ["--data", name]).data == name


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        # pasted from a page that makes one dash of two (ultralytics/yolov5 issue 7504)
        (["\N{EN DASH}-seed", "1"], ["'\N{EN DASH}-seed' belongs to no flag; did you mean --seed?"]),
        (["\N{EM DASH}seed=1"], ["'\N{EM DASH}seed=1' belongs to no flag; did you mean --seed=1?"]),
        # as other tools take them (ultralytics issue 2302)
        (
            ["optim.weight_decay=0.1"],
            ["'optim.weight_decay=0.1' belongs to no flag; did you mean --optim.weight-decay=0.1?"],
        ),
        # a blank after `=` (traveller59/second.pytorch issue 356)
        (["--output=", "./run"], ["'./run' belongs to no flag; --help lists all that can be said here."]),
        # a blank after the `\\` at a line's end (FreedomIntelligence/HuatuoGPT issue 25)
        (["--seed", "1", " "], ["an argument is blank: is there a blank behind a `\\` that should end its line?"]),
        # an option of the launcher behind the recipe (kohya-ss/sd-scripts issue 440)
        (
            ["--num_processes", "4", "--mixed_precision=bf16"],
            [
                "--num_processes is for accelerate launch: it stands before the recipe, not behind it.",
                "--mixed_precision is for accelerate launch: it stands before the recipe, not behind it.",
            ],
        ),
        # values of a flag that is not known are none themselves
        (["--sed", "data"], ["--sed is not known here; did you mean --seed?"]),
    ],
)
def test_what_people_type_is_understood_as_far_as_can_be(arguments: list[str], sentences: list[str]) -> None:
    assert [problem.sentence for problem in parse(TINY, arguments).unknown] == sentences
