"""Passes of any number of a process's images, and a device that is full."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.config import Model
from pipeline.errors import TrainingError
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, Job, resolve
from pipeline.memory import pass_bytes, state_bytes
from pipeline.micro_batch import FILLED, even_size, most_images
from pipeline.request import Request
from shards.dataset import Dataset
from shards.files import read_json
from tests.programs.full import Full
from tests.running import PROGRAMS, TIMEOUT, metrics, run, start, summary, train_here
from tests.tiny import HERE, TINY

ROUNDING = 0.1 * TINY.optim.lr  # another order of additions, blown up by Adam, is far less than one step


@pytest.mark.parametrize(
    ("images", "most", "size"),
    [
        (1024, 64, 64),
        (1024, 1024, 1024),
        (1024, 5000, 1024),
        (1024, 400, 256),  # 4 of 256, not 2 of 400 and the rest: a compiled model is compiled for one size
        (12, 3, 3),
        (12, 5, 4),
        (7, 3, 3),  # none but 1 divides it: 3, 3 and 1
        (1, 1, 1),
    ],
)
def test_passes_are_few_and_of_one_size_where_they_can_be(images: int, most: int, size: int) -> None:
    assert even_size(images, most) == size


def job_of(micro_batch: int | None = None) -> Job:
    recipe = TINY if micro_batch is None else replace(TINY, micro_batch=micro_batch)
    return resolve(Request(recipe=recipe), REHEARSAL, Hosting(precision="bf16"))


def test_a_pass_holds_a_virtual_rank_on_a_cpu_what_fits_on_a_device_and_what_is_asked_for() -> None:
    image, beside = pass_bytes(TINY, "bf16")
    room = sum(state_bytes(job_of()).values()) + beside
    memory = round((room + 100.5 * image) / FILLED)
    assert most_images(job_of(), None) == TINY.rank_batch
    assert most_images(job_of(), memory) == 100
    assert most_images(job_of(), memory // 1000) == 1
    assert most_images(job_of(7), memory) == most_images(job_of(7), None) == 7


def test_passes_over_several_virtual_ranks_give_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    for name, micro_batch in (("auto", "auto"), ("rank", 4), ("all", 12), ("five", 5)):
        train_here(dataset, tmp_path / name, replace(HERE, micro_batch=micro_batch), max_steps=6)
    names = ("auto", "rank", "all", "five")
    assert [passed(tmp_path / name) for name in names] == [[4], [4], [12], [4]]
    hashes = {name: summary(tmp_path / name)["weights_sha256"] for name in names}
    assert hashes["auto"] == hashes["rank"] == hashes["five"]
    compare(tmp_path / "auto", tmp_path / "all")


def passed(folder: Path) -> list[int]:
    """Return the size of a pass in each session of a run."""
    return [json.loads(line)["micro_batch"] for line in RunFolder(folder).sessions.read_text().splitlines()]


def compare(one: Path, other: Path) -> None:
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < ROUNDING
    losses = [[line["loss"] for line in metrics(folder, "train")] for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def halved(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six steps with passes of two images."""
    folder = tmp_path_factory.mktemp("halved") / "run"
    train_here(dataset, folder, replace(HERE, micro_batch=2), max_steps=6)
    return folder


def test_a_step_whose_third_pass_does_not_fit_ends_like_one_of_halves(
    dataset: Dataset, tmp_path: Path, halved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Full(full_pass=3) as device:
        assert train_here(dataset, tmp_path, HERE, max_steps=6, trace_samples=True) == 0
    assert device.passes == 3 + 6 * 6
    assert summary(tmp_path)["weights_sha256"] == summary(halved)["weights_sha256"]
    assert [line["loss"] for line in metrics(tmp_path, "train")] == [line["loss"] for line in metrics(halved, "train")]
    said = "step 0  a pass of 4 images does not fit into memory: 2 at a time from here on; the step is done again."
    assert capsys.readouterr().out.count(said) == 1
    assert next(line["event"] for line in metrics(tmp_path, "event")) == said.partition("  ")[2].partition(";")[0]


def test_passes_are_halved_until_they_fit_and_the_next_start_begins_there(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, micro_batch=12)
    with Full(holds=3) as device:
        train_here(dataset, tmp_path, recipe, max_steps=3)
        assert device.passes == 2 + 3 * 4
        train_here(dataset, tmp_path, recipe, max_steps=6)
        assert device.passes == 2 + 6 * 4
    kept = read_json(RunFolder(tmp_path).micro_batch, dict[str, int])
    assert kept == {"1 x cpu; ddp, fp32; --micro-batch 12": 3}
    assert passed(tmp_path) == [12, 3]
    train_here(dataset, tmp_path / "thirds", replace(HERE, micro_batch=3), max_steps=6)
    assert summary(tmp_path)["weights_sha256"] == summary(tmp_path / "thirds")["weights_sha256"]


def test_what_cannot_be_halved_ends_with_a_sentence(dataset: Dataset, tmp_path: Path) -> None:
    cnn = replace(HERE, model=Model(name="resnet20_cifar", img_size=16))
    with Full(holds=0):
        with pytest.raises(
            TrainingError, match=r"a pass of 1 images does not fit .* \(CUDA out .* GiB\.\)\. It cannot"
        ):
            train_here(dataset, tmp_path / "one", replace(HERE, micro_batch=1), max_steps=2)
        with pytest.raises(TrainingError, match="It cannot be halved: batch norm is over a virtual rank's images"):
            train_here(dataset, tmp_path / "cnn", cnn, max_steps=2)


@pytest.mark.dist
def test_two_processes_halve_alike_where_one_is_full(dataset: Dataset, tmp_path: Path) -> None:
    script, data = PROGRAMS / "full.py", ("--data", dataset.folder, "--max-steps", 8)
    run(script, *data, "--micro-batch", 2, "--output", tmp_path / "halves", processes=2)
    # the process that is full hosts one virtual rank of three, and exchanges in a pass of its own at first
    for full in (3, 5):
        done = run(script, *data, "--output", tmp_path / str(full), processes=2, env={"FULL": str(full)})
        assert done.stdout.count("does not fit into memory: 2 at a time from here on") == 1
        compare(tmp_path / "halves", tmp_path / str(full))


@pytest.mark.dist
def test_where_a_step_cannot_be_done_again_the_same_command_goes_on_with_halves(
    dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ("--data", dataset.folder, "--max-steps", 8, "--output", tmp_path)
    late = start(PROGRAMS / "full.py", *arguments, processes=2, env={"FULL": "9"})  # in step 4, memory had settled
    _, err = late.communicate(timeout=TIMEOUT)
    assert late.returncode
    assert "step 4: a pass of 4 images does not fit into the memory of the device (CUDA out of memory." in err
    assert "From the next start on 2 pass at a time: start the same command again" in err
    run(PROGRAMS / "full.py", *arguments, processes=2)
    assert [json.loads(line)["micro_batch"] for line in (tmp_path / "sessions.jsonl").read_text().splitlines()] == [
        4,
        2,
    ]
    assert summary(tmp_path)["steps"] == 8
