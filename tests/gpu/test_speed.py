"""How fast a card trains, what share of its peak that is, and what limits.  Nothing is asserted but that it runs."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch import bench, bench_loader, measured
from launch.bench import BARE, against_a_bare_loop, bench_step
from launch.measured import Measured, alone
from pipeline.config import Recipe
from pipeline.job import MEASURING, resolve
from pipeline.request import Request
from pipeline.session.rehearsal import forward_flops
from recipes import deit_small
from shards.dataset import Dataset
from shards.pack import Sample
from tests.gpu.comparing import Property
from tests.gpu.page import card as name_of_card
from tests.gpu.page import peak_of
from tests.photographs import photographs
from tests.programs.card import RECIPE

TRAINING = 3  # forward and backward pass, in forward passes


@pytest.fixture(autouse=True)
def short(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, of steps enough on a card for a clock."""
    on_card = device.type == "cuda"
    monkeypatch.setattr(measured, "ROUNDS", 3 if on_card else 1)
    monkeypatch.setattr(bench, "STEPS", 20 if on_card else 1)
    monkeypatch.setattr(bench_loader, "SECONDS", 3.0 if on_card else 0.1)


@pytest.fixture
def recipe(device: torch.device) -> Recipe:
    """DeiT-S with 256 images a virtual rank, or on the CPU a small one."""
    return replace(deit_small.RECIPE, virtual_ranks=4) if device.type == "cuda" else RECIPE


def tell(what: Measured, recipe: Recipe, record_property: Property) -> None:
    """Put the median of each arm on the page, with its share of the card's peak in bf16."""
    peak = peak_of(name_of_card())
    work = TRAINING * forward_flops(recipe)
    for arm, speeds in what.speeds.items():
        speed = statistics.median(speeds)
        share = f", {work * speed / peak:.1%} of the peak" if peak and "fp32" not in arm else ""
        record_property(arm, f"{speed:,.0f} images/s{share}")
    for names, ratio in what.ratios.items():
        record_property(names, f"{ratio:.3f}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of compilers, on a card that is not known yet
def test_speed_of_a_step_on_one_batch(recipe: Recipe, record_property: Property) -> None:
    steps = bench_step(recipe)
    tell(steps, recipe, record_property)
    ours, bare = (statistics.median(steps.speeds[arm]) for arm in ("bf16, compile", BARE))
    record_property("ours compiled / the bare compiled loop (goal 0.95)", f"{ours / bare:.3f}")
    assert ours > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_speed_of_the_recipe_from_shards(
    recipe: Recipe, tmp_path: Path, record_property: Property, data: Dataset, device: torch.device
) -> None:
    named = jpegs(tmp_path / "photographs", recipe.data.classes) if device.type == "cuda" else data
    asked = Request(recipe=alone(recipe, "bf16"), data=str(named.folder), output=str(tmp_path / "run"))
    job = resolve(asked, MEASURING)
    whole = against_a_bare_loop(job, 0)
    tell(whole, recipe, record_property)
    views = bench_loader.race(replace(job.recipe, precision="fp32"), job.index, [], 1)[1]
    core = statistics.median(views.speeds[bench_loader.OURS])
    record_property("views/s of a core's own time", f"{core:,.0f}")
    steps = statistics.median(whole.speeds["bare loop, one batch"])
    workers = max(1, job.hosting.workers)
    record_property("loader workers", workers)
    slower = "the loader" if core * workers < steps else "the card"
    record_property(
        "limits", f"{slower}: {workers} cores give {core * workers:,.0f} views/s, a batch takes {steps:,.0f}"
    )
    assert core > 0


def jpegs(folder: Path, classes: int) -> Dataset:
    """Pack 512 photographs of 400 px, with labels of so many classes."""
    import cv2

    from shards.dataset import read_dataset, write_dataset
    from shards.files import atomic_write
    from shards.index import write_index
    from shards.pack import pack

    samples = [
        Sample(f"{number:06d}", number % classes, cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes(), "jpg")
        for number, pixels in enumerate(photographs(512, 400))
    ]
    (folder / "train").mkdir(parents=True)
    with atomic_write(folder / "train" / "000000.tar") as file:
        contents = pack(file, samples)
    index = write_index(folder / "train", [(contents.shard("000000.tar"), contents.rows)])
    write_dataset(folder, [str(label) for label in range(classes)], {"train": index})
    return read_dataset(folder)
