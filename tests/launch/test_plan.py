"""`vitrail plan`, against the published run and numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from launch.plan import Cluster, Plan, exchanged_bytes, make_plan
from launch.rates import GPUS, RATES, published
from pipeline.config import Recipe
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, resolve
from pipeline.memory import activations, pass_bytes, state_bytes
from pipeline.micro_batch import even_size, most_images
from pipeline.model.build import on_meta, parameter_count
from pipeline.request import Request
from pipeline.session.rehearsal import MeasuredSpeed, forward_flops
from recipes import deit_base, deit_small
from tests.running import vitrail
from tests.tiny import TINY

PAPERS = Cluster(nodes=2, gpus_per_node=8, measured=MeasuredSpeed(180), price=2.0)
SHALLOW = replace(deit_base.RECIPE, model=replace(deit_base.RECIPE.model, depth=1))


def planned(recipe: Recipe, cluster: Cluster) -> Plan:
    hosting = Hosting(processes=cluster.nodes * cluster.gpus_per_node, precision="bf16")
    return make_plan(resolve(Request(recipe=recipe), REHEARSAL, hosting), cluster)


def test_the_hours_of_the_paper_come_out_at_its_rate() -> None:
    # DeiT, section 6: 37 hours on two nodes, at 180 images/s a GPU (papers.md 7.1)
    plan = planned(SHALLOW, PAPERS)
    assert plan.hours == pytest.approx(37, abs=0.1)
    assert plan.gpu_hours == pytest.approx(593, abs=1)
    assert plan.cost == pytest.approx(2 * plan.gpu_hours)
    assert (plan.steps_per_epoch, plan.steps, plan.peak_lr) == (1251, 375_300, 1e-3)
    assert plan.shares == [1] * 16
    assert plan.read_bytes_epoch == pytest.approx(1_281_024 / 3 * 110_000 / 2)  # a third of the images, by two nodes


def test_the_busiest_process_sets_the_pace() -> None:
    three = planned(TINY, Cluster(nodes=1, gpus_per_node=3, measured=MeasuredSpeed(10)))
    two = planned(TINY, Cluster(nodes=1, gpus_per_node=2, measured=MeasuredSpeed(10)))
    one = planned(TINY, Cluster(nodes=1, gpus_per_node=1, measured=MeasuredSpeed(10)))
    assert (three.shares, two.shares, one.shares) == ([1, 1, 1], [2, 1], [3])
    assert two.hours == pytest.approx(2 * three.hours)
    assert one.hours == pytest.approx(3 * three.hours)
    assert (three.micro_batches, one.micro_batches) == (1, 3)


def test_memory_is_shared_as_the_engine_shares_it() -> None:
    job = replace(resolve(Request(recipe=TINY), REHEARSAL), parameters={"all": (400, 400)})
    by_engine: dict[Any, dict[str, int]] = {
        engine: state_bytes(replace(job, hosting=Hosting(processes=16, engine=engine)))
        for engine in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
    }
    parts = ("weights", "gradients", "moments", "ema")
    assert [by_engine["ddp"][part] for part in parts] == [1600, 1600, 3200, 1600]
    assert [by_engine["zero1"][part] for part in parts] == [1600, 1600, 200, 1600]
    assert [by_engine["zero2"][part] for part in parts] == [1600, 100, 200, 1600]
    assert [by_engine["zero3"][part] for part in parts] == [100, 100, 200, 100]
    assert by_engine["fsdp2"] == by_engine["zero3"] | {"gradients": 1600}
    several = replace(TINY, ema=replace(TINY.ema, more=(0.5, 0.99)), optim=replace(TINY.optim, name="muon"))
    alone = state_bytes(replace(job, recipe=several))
    assert (alone["ema"], alone["moments"]) == (3 * 1600, 1600)


def test_a_plan_counts_what_a_pass_takes() -> None:
    image, beside = pass_bytes(TINY, "bf16")
    plan = planned(TINY, Cluster(nodes=1, gpus_per_node=1))
    assert (plan.micro_batches, plan.micro_batch_size) == (3, 4)
    assert plan.memory["activations"] == 4 * image + beside


def test_a_named_gpu_passes_as_many_as_fit_and_one_that_is_not_a_virtual_rank() -> None:
    alone = Cluster(nodes=1, gpus_per_node=1, gpu="a100")
    plan, unnamed = planned(SHALLOW, alone), planned(SHALLOW, replace(alone, gpu=None))
    job = resolve(Request(recipe=SHALLOW), REHEARSAL, Hosting(precision="bf16"))
    fitting = even_size(1024, most_images(job, GPUS["a100"].memory))
    assert fitting > 64
    assert (plan.micro_batch_size, plan.micro_batches) == (fitting, 1024 // fitting)
    assert plan.gpus[0].pass_images == fitting == unnamed.gpus[1].pass_images
    image, beside = pass_bytes(SHALLOW, "bf16")
    assert plan.memory["activations"] == fitting * image + beside
    assert (unnamed.micro_batch_size, unnamed.micro_batches) == (64, 16)
    nodes = replace(alone, nodes=2)  # where what is sent goes by passes
    two = resolve(Request(recipe=SHALLOW), REHEARSAL, Hosting(processes=2, engine="zero2", precision="bf16"))
    assert make_plan(two, nodes).exchanged_bytes < make_plan(two, replace(nodes, gpu=None)).exchanged_bytes


def test_activations_of_more_blocks_and_wider_numbers_are_more() -> None:
    deeper = replace(TINY, model=replace(TINY.model, depth=4))
    (few, casts), (many, _), (wide, none) = (
        activations(recipe, precision) for recipe, precision in ((TINY, "bf16"), (deeper, "bf16"), (TINY, "fp32"))
    )
    assert 1.5 < many / few < 2
    assert 1.3 < wide / few < 2
    assert none == 0
    parameters = parameter_count(on_meta(TINY))
    assert 0.8 < casts / (2 * parameters) < 1.1  # the weights once more, in two bytes each


def test_what_a_node_sends_is_what_a_ring_sends() -> None:
    assert exchanged_bytes(1, "ddp", 100, 100, micro_batches=1) == 0
    assert exchanged_bytes(2, "ddp", 100, 100, micro_batches=4) == 100
    assert exchanged_bytes(2, "fsdp2", 100, 100, micro_batches=4) == 450


def test_a_published_rate_is_taken_as_it_is_or_scaled_by_flops_and_that_is_said() -> None:
    base, small = (forward_flops(module.RECIPE) for module in (deit_base, deit_small))
    assert published("a100", base) == (pytest.approx(447.9, abs=0.1), f"published of ViT-B/16: {RATES[4].source}")
    assert published("h100", small).images_per_second == 7716
    scaled = published("h100", base)
    assert scaled.images_per_second == pytest.approx(7716 * 9.47e9 / base)
    assert scaled.source.startswith("scaled from ViT-5-Small by FLOPs")
    assert {rate.gpu for rate in RATES} == set(GPUS)
    assert all(rate.source for rate in RATES)


def test_the_papers_hours_of_deit_come_near_from_the_published_rates() -> None:
    # the paper: 53 hours of DeiT-B on 8 V100, DeiT-S in less than 3 days on 4 (papers.md 7.1)
    hours = {}
    for module, gpus in ((deit_base, 8), (deit_small, 4)):
        rate = published("v100", forward_flops(module.RECIPE)).images_per_second
        hours[module.RECIPE.name] = 375_300 * 1024 / (rate * gpus) / 3600
    assert hours["deit_base"] == pytest.approx(53, rel=0.1)
    assert 40 < hours["deit_small"] < 72


def test_without_a_measurement_each_gpu_has_its_hours_and_what_bounds_them() -> None:
    plan = planned(SHALLOW, Cluster(nodes=2, gpus_per_node=8, cores_per_gpu=8))
    assert (plan.hours, plan.gpu_hours) == (None, None)
    assert [on.gpu for on in plan.gpus] == [gpu.name for gpu in GPUS.values()]
    assert plan.loader_hours == pytest.approx(375_300 * 1024 / (16 * 8 * 341) / 3600)
    for on in plan.gpus:
        assert on.hours == max(on.compute_hours, plan.loader_hours)
        assert on.bound_by == ("compute" if on.compute_hours > plan.loader_hours else "loader")
        assert on.pass_images == 64  # all that a process hosts of 1024 on 16
    one = planned(SHALLOW, Cluster(nodes=2, gpus_per_node=8, gpu="h100", cores_per_gpu=1, price=2.0))
    assert one.gpus[0].bound_by == "loader"
    assert one.hours == one.loader_hours == pytest.approx(8 * plan.loader_hours)
    assert one.cost == pytest.approx(2 * 16 * one.hours)
    assert not planned(SHALLOW, PAPERS).gpus  # something was measured, and no GPU named


def test_what_a_core_prepares_is_measured_or_documented_and_that_is_said() -> None:
    rehearsed = MeasuredSpeed(10, "", 50, "2 CPU cores")
    plan = planned(TINY, Cluster(nodes=1, gpus_per_node=1, measured=rehearsed))
    assert (plan.views_per_core, plan.views_source) == (50, "as rehearsed on 2 CPU cores")
    once = replace(TINY, data=replace(TINY.data, repeats=1))
    plan = planned(once, Cluster(nodes=1, gpus_per_node=1))
    assert plan.views_per_core == 242
    assert "docs/speed.md" in plan.views_source


def test_the_table_says_both_hours_and_their_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    small = ("--model.depth", "1", "--model.img-size", "32")
    shown = vitrail("plan", "deit_base", "--output", tmp_path / "none", *small, "--gpu", "a100").stdout
    assert "hours on A100 SXM 80 GB" in shown
    assert "by FLOPs: PaddlePaddle/PLSC" in shown
    assert "hours of the loader" in shown
    assert "H100" not in shown
    assert "a virtual rank's" not in shown
    unnamed = vitrail("plan", "deit_base", "--output", tmp_path / "none", *small).stdout
    assert "64 images, a virtual rank's; for what fits name a --gpu" in unnamed
    wrong = vitrail("plan", "deit_base", *small, "--cores-per-gpu", "0", code=2).stderr
    assert "--cores-per-gpu is 0; it must be more than 0." in wrong
