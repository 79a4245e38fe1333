"""`vitrail plan`, against the published run and numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from launch.plan import Cluster, Plan, exchanged_bytes, make_plan
from pipeline.config import Recipe
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, resolve
from pipeline.memory import activations, pass_bytes, state_bytes
from pipeline.model.build import on_meta, parameter_count
from pipeline.request import Request
from recipes import deit_base
from tests.tiny import TINY

PAPERS = Cluster(nodes=2, gpus_per_node=8, images_per_second=180, price=2.0)


def planned(recipe: Recipe, cluster: Cluster) -> Plan:
    hosting = Hosting(processes=cluster.nodes * cluster.gpus_per_node, precision="bf16")
    return make_plan(resolve(Request(recipe=recipe), REHEARSAL, hosting), cluster)


def test_the_hours_of_the_paper_come_out_at_its_rate() -> None:
    # DeiT, section 6: 37 hours on two nodes, at 180 images/s a GPU (papers.md 7.1)
    plan = planned(replace(deit_base.RECIPE, model=replace(deit_base.RECIPE.model, depth=1)), PAPERS)
    assert plan.hours == pytest.approx(37, abs=0.1)
    assert plan.gpu_hours == pytest.approx(593, abs=1)
    assert plan.cost == pytest.approx(2 * plan.gpu_hours)
    assert (plan.steps_per_epoch, plan.steps, plan.peak_lr) == (1251, 375_300, 1e-3)
    assert plan.shares == [1] * 16
    assert plan.read_bytes_epoch == pytest.approx(1_281_024 / 3 * 110_000 / 2)  # a third of the images, by two nodes


def test_the_busiest_process_sets_the_pace() -> None:
    three = planned(TINY, Cluster(nodes=1, gpus_per_node=3, images_per_second=10))
    two = planned(TINY, Cluster(nodes=1, gpus_per_node=2, images_per_second=10))
    one = planned(TINY, Cluster(nodes=1, gpus_per_node=1, images_per_second=10))
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
    assert by_engine["fsdp2"] == by_engine["zero3"]
    several = replace(TINY, ema=replace(TINY.ema, more=(0.5, 0.99)), optim=replace(TINY.optim, name="muon"))
    alone = state_bytes(replace(job, recipe=several))
    assert (alone["ema"], alone["moments"]) == (3 * 1600, 1600)


def test_a_plan_counts_what_a_pass_takes() -> None:
    image, beside = pass_bytes(TINY, "bf16")
    plan = planned(TINY, Cluster(nodes=1, gpus_per_node=1))
    assert (plan.micro_batches, plan.micro_batch_size) == (3, 4)
    assert plan.memory["activations"] == 4 * image + beside


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
