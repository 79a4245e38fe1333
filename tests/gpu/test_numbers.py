"""A GPU computes what the CPU computes, twice the same, and never waits within a step."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import Distill, Recipe
from pipeline.data.batch import Batch, TrainingBatches
from pipeline.data.device import model_input, on_device
from pipeline.hosting import build_accelerator
from pipeline.job import REHEARSAL, resolve
from pipeline.micro_batch import MicroBatch
from pipeline.request import Request
from pipeline.teacher.teacher import write_random_weights
from pipeline.train import build, train
from shards.dataset import Dataset
from tests.gpu.comparing import Property, apart, losses
from tests.programs.card import RECIPE, STEPS
from tests.running import PROGRAMS, SCRIPT, TIMEOUT, run, start, summary, train_here, vitrail

BF16 = 2**-8  # the relative rounding of one number


def test_views_are_those_of_the_cpu(device: torch.device, data: Dataset, record_property: Property) -> None:
    batches = TrainingBatches(RECIPE, data.splits["train"])
    worst = 0.0
    for step in range(2):
        batch = batches[step, 0]
        here, there = on_device(batch, torch.device("cpu")), on_device(batch, device)
        assert torch.equal(there.images.cpu(), here.images)
        assert torch.equal(there.labels.cpu(), here.labels)
        seen = [model_input(views, RECIPE.model).cpu() for views in (here, there)]
        worst = max(worst, (seen[0] - seen[1]).abs().max().item())
    record_property("largest difference of a normalised pixel", f"{worst:.1e}")
    assert worst < 1e-4  # of noise of deviation 1: logarithm and cosine round otherwise


@pytest.fixture(scope="module")
def on_the_cpu(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of ten steps on the CPU in fp32."""
    folder = tmp_path_factory.mktemp("cpu") / "run"
    arguments = ("--data", data.folder, "--output", folder, "--precision", "fp32")
    run(PROGRAMS / "card.py", *arguments, env={"CUDA_VISIBLE_DEVICES": ""})
    return losses(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_the_cpu_in_fp32(
    precision: str, on_the_cpu: list[float], data: Dataset, tmp_path: Path, record_property: Property
) -> None:
    assert train_here(data, tmp_path / "run", replace(RECIPE, precision=precision)) == 0
    assert len(on_the_cpu) == STEPS
    worst = apart(losses(tmp_path / "run"), on_the_cpu)
    record_property("largest relative difference of 10 losses", f"{worst:.1e}")
    assert worst < 2 * BF16  # TF32 rounds less


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_are_equal_bit_for_bit(
    precision: str, data: Dataset, tmp_path: Path, record_property: Property
) -> None:
    recipe = replace(RECIPE, precision=precision)
    for name in ("one", "two"):
        assert train_here(data, tmp_path / name, recipe) == 0
    one, two = (summary(tmp_path / name)["weights_sha256"] for name in ("one", "two"))
    record_property("weights_sha256", f"{one[:12]}, {two[:12]}")
    assert one == two


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    dataset: Dataset, tmp_path: Path, record_property: Property
) -> None:
    said = ("--data", dataset.folder, "--precision", "bf16", "--output")
    run(SCRIPT, *said, tmp_path / "unbroken")
    process = start(PROGRAMS / "killed.py", *said, tmp_path / "killed", env={"KILL": "step 13"})
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL, err
    run(SCRIPT, *said, tmp_path / "killed")
    one, two = (summary(tmp_path / name)["weights_sha256"] for name in ("unbroken", "killed"))
    record_property("weights_sha256", f"{one[:12]}, {two[:12]}")
    assert one == two


def test_passes_of_64_and_of_256_are_alike(data: Dataset, tmp_path: Path, record_property: Property) -> None:
    for images in (64, 256):
        recipe = replace(RECIPE, precision="fp32", micro_batch=images)
        assert train_here(data, tmp_path / str(images), recipe) == 0
    worst = apart(losses(tmp_path / "64"), losses(tmp_path / "256"))
    record_property("largest relative difference of 10 losses", f"{worst:.1e}")
    assert worst < 1e-3  # another order of additions, in TF32


def test_a_teacher_that_answers_live_and_one_that_is_stored_are_alike(
    data: Dataset, tmp_path: Path, record_property: Property
) -> None:
    weights = tmp_path / "teacher.safetensors"
    taught = replace(
        RECIPE, precision="fp32", distill=Distill(teacher="resnet20_cifar", weights=str(weights), token=False)
    )
    write_random_weights(taught, weights)
    assert train_here(data, tmp_path / "live", taught) == 0
    stored = replace(taught, distill=replace(taught.distill, store=str(tmp_path / "store")))
    said = ("--distill.teacher", "resnet20_cifar", "--distill.weights", weights, "--distill.no-token")
    said += ("--distill.store", tmp_path / "store")
    vitrail("teach", PROGRAMS / "card.py", "--data", data.folder, "--precision", "fp32", *said)
    assert train_here(data, tmp_path / "stored", stored) == 0
    worst = apart(losses(tmp_path / "live"), losses(tmp_path / "stored"))
    record_property("largest relative difference of 10 losses", f"{worst:.1e}")
    assert worst < 2 * BF16  # outputs are stored in two bytes


class Silent:
    """Events that log nothing; from the third step on, a wait for the device is an error."""

    steps = 0

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        pass

    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        self.steps += 1
        if self.steps == 2 and torch.cuda.is_available():  # what is made once is made
            torch.cuda.set_sync_debug_mode("error")
        return False

    def after_halving(self, step: int, said: str) -> None:
        raise AssertionError(said)

    def skip_step(self, step: int) -> bool:
        return False

    def lap(self, part: str) -> None:
        pass


@pytest.mark.parametrize("what", ["alone", "taught"])
def test_a_step_never_waits_for_the_device(what: str, data: Dataset, tmp_path: Path, record_property: Property) -> None:
    recipe: Recipe = replace(RECIPE, precision="bf16", optim=replace(RECIPE.optim, clip=1.0))
    if what == "taught":
        weights = tmp_path / "teacher.safetensors"
        recipe = replace(recipe, distill=Distill(teacher="resnet20_cifar", weights=str(weights), token=False))
        write_random_weights(recipe, weights)
    job = resolve(Request(recipe=recipe, data=str(data.folder), output=str(tmp_path / "run")), REHEARSAL)
    accelerator = build_accelerator(job.hosting, recipe.compute)
    trained = build(job, accelerator, MicroBatch(job, accelerator))
    events = Silent()
    try:
        train(trained, events)
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        trained.feed.close()
    record_property("steps without a wait", events.steps - 2)
    assert events.steps == STEPS
