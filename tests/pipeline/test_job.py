"""Requests: what they ask for, and everything that is wrong with them, said at once."""

import json
import pickle
import shutil
import tempfile
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import job
from pipeline.config import Distill, Model, Recipe, identity
from pipeline.data.loader import shared_memory
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting, hosting_of_launch
from pipeline.job import (
    EVALUATING,
    FILLING,
    LOOKING,
    ORDERING,
    PLANNING,
    PREDICTING,
    REHEARSAL,
    TRAINING,
    Need,
    resolve,
)
from pipeline.micro_batch import most_images
from pipeline.model.build import on_meta
from pipeline.request import Request, parse
from pipeline.rules import hosting_problems
from recipes.deit_small import RECIPE
from shards.dataset import Dataset
from shards.errors import BadRequest, Problem
from shards.synthetic import make_dataset
from tests.tiny import TINY

Usage = namedtuple("Usage", ["total", "used", "free"])


def problems(request: Request, need: Need = TRAINING, hosting: Hosting | None = None) -> list[str]:
    """Return what is wrong with a request, a sentence each."""
    try:
        resolve(request, need, hosting)
    except BadRequest as error:
        return [problem.sentence for problem in error.problems]
    return []


def of_recipe(recipe: Recipe, **hosting: object) -> list[str]:
    return problems(Request(recipe=recipe), REHEARSAL, Hosting(**hosting))  # type: ignore[arg-type]


def test_a_recipe_of_the_repository_has_no_problem() -> None:
    assert of_recipe(RECIPE, processes=8) == []


def test_all_problems_are_found_at_once(dataset: Dataset) -> None:
    wrong = replace(
        TINY,
        batch=80,
        epochs=0,
        seed=-1,
        model=replace(TINY.model, name="deit_smal_patch16_224", patch_size=5),
        data=replace(TINY.data, classes=10),
        mix=replace(TINY.mix, smoothing=2.0),
    )
    request = Request(recipe=wrong, data=str(dataset.folder))
    found = "\n".join(problems(request, REHEARSAL, Hosting(processes=4)))
    for words in (
        "--batch 80 cannot be divided among --virtual-ranks 3; the nearest number that divides it is 2",
        "--epochs is 0",
        "--seed is -1",
        "near: deit_small_patch16_224",
        "--model.img-size 16 is not a multiple of --model.patch-size 5",
        "has 4 classes, the recipe's model 10 outputs",
        "--mix.smoothing is 2.0",
        "4 processes cannot host --virtual-ranks 3: each needs one at least. Start at most 3 processes. "
        "Or take --virtual-ranks 4, which uses them all. That is another run",
        "--batch 80 is more than the 70 training images",
    ):
        assert words in found


@pytest.mark.parametrize(
    ("batch", "processes", "words"),
    [
        (64, 8, "Or take --virtual-ranks 8, which uses them all. That is another run: its views and mixing differ."),
        (
            64,
            12,
            "No --virtual-ranks divides --batch 64 alike among 12; --virtual-ranks 8 uses 8 of them. That is another",
        ),
        (64, 5, "Start at most 4 processes. No --virtual-ranks divides --batch 64 alike among 5."),
    ],
)
def test_more_processes_than_virtual_ranks_hear_how_many_would_use_them(batch: int, processes: int, words: str) -> None:
    (problem,) = hosting_problems(replace(TINY, batch=batch, virtual_ranks=4), processes, "ddp")
    assert words in problem.sentence
    assert problem.sentence.endswith(("differ.", "among 5."))


def test_fields_are_set_by_their_dotted_names() -> None:
    arguments = ["--data", "D", "--optim.lr", "3e-4", "--optim.weight-decay", "0.1", "--data.workers", "3"]
    request = parse(TINY, [*arguments, "--seed", "7", "--dry-run", "--augment.scale", "0.2", "0.9"])
    assert (request.data, request.dry_run, request.recipe.seed) == ("D", True, 7)
    assert (request.recipe.optim.lr, request.recipe.optim.weight_decay) == (3e-4, 0.1)
    assert (request.recipe.data.workers, request.recipe.augment.scale) == (3, (0.2, 0.9))


def test_an_unknown_field_names_the_nearest_beside_the_other_problems(tmp_path: Path) -> None:
    request = parse(TINY, ["--optim.lrr", "1", "--batch", "7", "--data", str(tmp_path / "none")])
    found = "\n".join(problems(request))
    assert "--optim.lrr is not known here; did you mean --optim.lr?" in found
    assert "none: no such folder. Build one with: vitrail shards build" in found
    assert "--batch 7 cannot be divided" in found


def test_missing_data_and_an_output_that_cannot_be_written_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    request = parse(TINY, ["--output", str(tmp_path / "file" / "run")])
    found = "\n".join(problems(request))
    assert "--data is missing" in found
    assert "cannot be written to (Not a directory)" in found


def test_a_model_that_cannot_be_built_is_one_of_the_problems(dataset: Dataset, tmp_path: Path) -> None:
    arguments = ["--data", str(dataset.folder), "--output", str(tmp_path), "--model.heads", "5", "--max-steps", "-1"]
    found = "\n".join(problems(parse(TINY, arguments)))
    assert "deit_tiny_patch16_224 does not take these settings" in found
    assert "--max-steps is -1" in found


def test_a_folder_without_shards_says_how_to_make_them(tmp_path: Path) -> None:
    found = problems(parse(TINY, ["--data", str(tmp_path), "--output", str(tmp_path / "run")]))
    assert any("no shards here" in problem and "vitrail shards build" in problem for problem in found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "ftp://host/shards",
            "--data ftp://host/shards: ftp:// is not read. What is: http://, https://, s3://, gs://, hf://",
        ),
        (
            "pipe:curl http://host/x.tar",
            "--data pipe:curl http://host/x.tar: `pipe:` would run a command, which Vitrail",
        ),
    ],
)
def test_an_address_that_is_not_read_is_refused_plainly(tmp_path: Path, data: str, words: str) -> None:
    (found,) = problems(parse(TINY, ["--data", data, "--output", str(tmp_path)]))
    assert found.startswith(words)


def test_a_recipe_comes_back_from_json_as_the_same_run() -> None:
    assert identity(json.loads(json.dumps(asdict(TINY)))) == identity(TINY)


def test_hosting_is_no_part_of_what_a_run_is() -> None:
    hosted = replace(TINY, micro_batch=1, precision="bf16", data=replace(TINY.data, workers=9))
    assert identity(hosted) == identity(TINY)
    assert identity(replace(TINY, seed=1)) != identity(TINY)


def test_a_field_that_had_another_name_is_refused_with_the_new_one() -> None:
    found = problems(parse(TINY, ["--model.checkpoint", "x", "--distill.checkpoint", "y"]), REHEARSAL)
    assert found == [
        "--model.checkpoint is called --model.weights now.",
        "--distill.checkpoint is called --distill.weights now.",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--augment.policy", "auto"], "--augment.rand-ops 2 is for --augment.policy rand or --augment.policy rand_tf"),
        (["--augment.crop", "whole", "--augment.pad", "9"], "--augment.pad 9 is for --augment.crop padded"),
        (["--optim.momentum", "0.5"], "--optim.momentum 0.5 is for --optim.name sgd, not for adamw"),
        (["--distill.tau", "3"], "--distill.tau 3.0 has no meaning without --distill.teacher"),
        (["--distill.no-token"], "--distill.no-token has no meaning without --distill.teacher"),
        (["--distill.teacher", "resnet18", "--distill.tau", "3"], "--distill.tau 3.0 is for --distill.loss soft"),
        (["--finetune.decay", "0.5"], "--finetune.decay 0.5 is for --finetune.rates geometric or"),
        (["--mix.mixup-alpha", "0", "--mix.switch-prob", "1"], "--mix.switch-prob 1.0 has no meaning without"),
        (["--spike.limit", "9"], "--spike.limit 9 is for --spike.policy skip or --spike.policy rollback, not for stop"),
        (["--model.new-head"], "--model.new-head has no meaning without --model.weights"),
    ],
)  # fmt: skip
def test_a_value_that_nothing_would_read_is_refused(arguments: list[str], sentence: str) -> None:
    assert any(problem.startswith(sentence) for problem in problems(parse(TINY, arguments), REHEARSAL))


def test_an_empty_variable_of_a_launcher_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    hosting = hosting_of_launch(TINY)
    assert (hosting.processes, hosting.process) == (1, 0)


def test_a_launcher_that_names_another_engine_is_one_of_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    found = problems(Request(recipe=replace(TINY, epochs=0)), REHEARSAL)
    assert ["--epochs is 0" in found[0], "FSDP 1" in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seed", "-1"], "--seed is -1; it must lie between 0 and"),
        (["--finetune.rates", "divided", "--finetune.decay", "0"], "--finetune.decay is 0.0; it must be more than 0."),
        (["--finetune.strategy", "half"], "--finetune.strategy 'half' is none of full, linear"),
        (["--data.subset", "1000000"], "--data.subset 1000000 is more than the 70 training images"),
    ],
)
def test_what_is_wrong_is_said_once(dataset: Dataset, arguments: list[str], sentence: str) -> None:
    (problem,) = problems(parse(TINY, ["--data", str(dataset.folder), *arguments]), REHEARSAL, Hosting())
    assert problem.startswith(sentence)


def test_no_process_at_all_is_refused() -> None:
    assert of_recipe(TINY, processes=0) == ["0 processes train nothing; start one at least."]


def test_a_run_that_goes_on_needs_no_room_for_the_checkpoints_that_it_has(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(recipe=TINY, data=str(dataset.folder), output=str(tmp_path))
    job = resolve(request, TRAINING, Hosting())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 2 * job.checkpoint_bytes))
    assert "checkpoints need" in problems(request)[0]
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert problems(request) == []


def test_shared_memory_that_is_too_small_is_a_problem_with_a_number_of_workers_that_fits(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Hosting(workers=3, local_processes=2, processes=2)
    recipe = replace(TINY, data=replace(TINY.data, workers=3))
    request = Request(recipe=recipe, data=str(dataset.folder), output=str(tmp_path))
    free = resolve(request, TRAINING, two).shared_memory(2) - 1
    monkeypatch.setattr(job, "free_shared_memory", lambda: free)
    (found,) = problems(request, TRAINING, two)
    assert found.startswith("/dev/shm: 0.1 MB are free, the batches that 3 loader workers of 2 process(es) prepare")
    assert "What fits is --data.workers 1; or give more: docker run --shm-size" in found
    assert problems(request, TRAINING, replace(two, workers=1)) == []
    monkeypatch.setattr(job, "free_shared_memory", lambda: 0)
    assert "What fits is --data.workers 0" in problems(request, TRAINING, two)[0]
    for fine in (replace(two, workers=0), two):
        assert problems(request, TRAINING, fine) == []
        monkeypatch.setattr(job, "free_shared_memory", lambda: None)  # a system that has it elsewhere


@pytest.mark.parametrize(("processes", "pinned", "held"), [(1, False, 3), (2, False, 2), (3, False, 1), (1, True, 1)])
def test_shared_memory_holds_the_batches_of_a_step_until_its_end_unless_they_are_pinned(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, pinned: bool, held: int
) -> None:
    request = Request(recipe=TINY, data=str(dataset.folder), output=str(tmp_path))
    asked = resolve(request, LOOKING, Hosting(processes=processes))
    monkeypatch.setattr(job, "pins", lambda device: pinned)
    assert asked.shared_memory(1) == shared_memory(TINY, 1, held_out=21, in_use=held)


def test_a_refusal_travels_to_another_process_with_all_its_problems() -> None:
    refusal = BadRequest([Problem("batch", "--batch 0."), Problem("", "And more.")])
    assert pickle.loads(pickle.dumps(refusal)).problems == refusal.problems


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "exp/../../x", "/x", "a\nb", "a\x1b[31m"])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(name: str) -> None:
    (problem,) = of_recipe(replace(TINY, name=name))
    assert problem.startswith(f"--name {name!r} names no folder below runs/")


@pytest.mark.parametrize("name", ["exp/a 1", "deit...small", "größe", "[red]x[/]", "a$b$"])
def test_a_name_of_folders_blanks_and_other_letters_is_taken(name: str) -> None:
    assert of_recipe(replace(TINY, name=name)) == []
    assert Request(recipe=replace(TINY, name=name)).folder == Path("runs") / name


def test_a_folder_that_holds_what_is_no_runs_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    for name in ("c.jpg", "a.jpg", "b.jpg", "model.safetensors", "config.json", ".hidden"):
        (output / name).write_text("somebody's")
    request = Request(recipe=TINY, data=str(dataset.folder), output=str(output))
    (problem,) = problems(request, TRAINING, Hosting())
    assert "holds what is no run's (a.jpg, b.jpg, c.jpg and 2 more); name a folder of the run's own" in problem
    assert problems(replace(request, output=str(dataset.folder)), TRAINING, Hosting())
    assert (output / "a.jpg").read_text() == "somebody's"


@pytest.mark.parametrize(
    "names",
    [
        (),
        (".lock", ".snapshot", "lost+found"),  # a disk of its own
        ("train.log", "job-17.out", "job-17.err"),  # what a shell or SLURM began to write there
        ("rehearsal.json",),
        ("recipe.json", "notes.txt", "metrics.jsonl"),
        ("recipe.json.damaged", "sessions.jsonl", "notes.txt"),
    ],
)
def test_a_folder_that_is_empty_or_a_runs_is_taken(dataset: Dataset, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert problems(Request(recipe=TINY, data=str(dataset.folder), output=str(tmp_path)), TRAINING, Hosting()) == []


@pytest.mark.parametrize("need", [TRAINING, FILLING, REHEARSAL, PLANNING, LOOKING, ORDERING])
def test_data_without_a_train_split_is_said_to_be(need: Need, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", classes=4, size=24, samples={"val": 20, "other": 20})
    sentence = f"{tmp_path}/data: no split `train` (it has val, other)."
    assert problems(Request(recipe=TINY, data=str(made.folder), output=str(tmp_path / "run")), need) == [sentence]


def test_the_probe_of_one_process_is_no_stranger_to_another(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    @contextmanager
    def named(**options: Any) -> Any:  # as where a file system has no file without a name
        with tempfile.NamedTemporaryFile(**options) as file:
            seen.append([path.name for path in tmp_path.iterdir()] + RunFolder(tmp_path).strangers())
            yield file

    monkeypatch.setattr(tempfile, "TemporaryFile", named)
    assert problems(Request(recipe=TINY, data=str(dataset.folder), output=str(tmp_path))) == []
    ((name,),) = seen
    assert name.startswith(".probe-")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_needs_no_training_split_no_virtual_ranks_and_no_teacher(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", classes=3, size=8, samples={"test": 6})
    gone = Distill(teacher="local-dir:/gone", fusion="code")
    distilled = replace(TINY, distill=gone, model=replace(TINY.model, name="deit_tiny_distilled_patch16_224"))
    request = Request(recipe=distilled, data=str(made.folder))
    assert problems(request, EVALUATING, Hosting(processes=8)) == []
    assert any("no split `train`" in sentence for sentence in problems(request, TRAINING, Hosting()))
    assert problems(replace(request, data=""), PREDICTING) == []
    assert any("--data is missing" in sentence for sentence in problems(replace(request, data=""), EVALUATING))
    missing = replace(distilled, model=replace(distilled.model, weights=str(tmp_path / "none.pth")))
    assert any("no such file" in sentence for sentence in problems(replace(request, recipe=missing), EVALUATING))


@pytest.mark.parametrize(
    ("model", "batch_norm", "blocks"),
    [(TINY.model, False, True), (Model(name="resnet20_cifar", img_size=16), True, False)],
)
def test_what_the_hosting_hangs_on_of_a_model_is_known_once_it_was_built(
    model: Model, batch_norm: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(job, "on_meta", lambda recipe: built.append(recipe) or on_meta(recipe))
    monkeypatch.setattr(job, "compiles", lambda _: True)  # as a GPU does
    monkeypatch.setattr(job, "REPAID", 1)
    found = resolve(Request(recipe=replace(TINY, model=model)), REHEARSAL, Hosting())
    assert (found.batch_norm, found.blocks, found.hosting.compiled) == (batch_norm, blocks, blocks)
    assert most_images(found, None) == TINY.rank_batch
    assert len(built) == 1
