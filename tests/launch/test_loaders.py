"""The loaders of other libraries: that each gives a recipe's batches; never how fast."""

import os
from contextlib import closing
from dataclasses import replace
from typing import get_args

import pytest
import torch

from launch import loaders
from launch.loaders import LIBRARIES, LOADERS, WITHOUT, Library, lacking, loaders_of, named, rand_augment_of_timm
from pipeline.config import Policy
from shards.dataset import Dataset
from tests.running import SCRIPT, vitrail
from tests.tiny import TINY

BATCHES = 3


@pytest.mark.parametrize("name", get_args(Policy))
def test_timm_is_asked_for_its_own_rand_augment_alone(name: str) -> None:
    asked = rand_augment_of_timm(replace(TINY, augment=replace(TINY.augment, policy=name)))
    assert asked == ("rand-n2-m9-mstd0.5-inc1" if name == "rand" else None)


def tars(dataset: Dataset) -> list[str]:
    index = dataset.splits["train"]
    return [index.tar(shard) for shard in range(len(index.shards))]


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the collector
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core
@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_gives_batches_of_views(name: str, dataset: Dataset) -> None:
    if not loaders.installed(library := LOADERS[name].library):
        assert not os.environ.get("VITRAIL_DEMAND"), f"{library} demanded: {LIBRARIES[library].remedy}"
        pytest.skip(f"{library} is not installed")
    size, seen = TINY.model.img_size, []
    with closing(LOADERS[name].start(TINY, tars(dataset), 2)) as batches:
        for _ in range(BATCHES):
            batch = next(batches)
            images = batch if isinstance(batch, torch.Tensor) else batch[0]
            assert images.dtype == (torch.float32 if name == "webdataset and timm" else torch.uint8)
            assert sorted(images.shape) == sorted((TINY.batch, 3, size, size))
            assert images.float().std() > 0.1
            seen.append(images)
    assert not torch.equal(seen[0], seen[-1])


def test_all_that_is_installed_is_measured_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(" torchvision,timm") == (["torchvision", "timm"], [])
    monkeypatch.setattr(loaders, "LIBRARIES", {**LIBRARIES, "dali": Library("nothing.dali", "a remedy")})
    assert named("") == (["timm", "torchvision"], [])


def test_a_library_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = LIBRARIES["dali"]._replace(module="nothing.dali")
    monkeypatch.setattr(loaders, "LIBRARIES", {**LIBRARIES, "dali": absent})
    said = vitrail("bench", "loader", SCRIPT, "--against", "timm,dali,ffvc", "--workers", "0", code=2).stderr
    assert "--against dali: it is not installed here (it runs on CPUs too: pip install nvidia-dali-cuda120)" in said
    assert "--against ffvc: not one of timm, torchvision, dali." in said
    assert "--workers 0" in said


def test_no_arm_leaves_out_a_policy_that_there_is_not() -> None:
    plain = replace(TINY, augment=replace(TINY.augment, rand_ops=0))
    assert WITHOUT in loaders_of(["dali"], TINY)
    assert [*loaders_of(["dali"], plain)] == ["DALI"]
    assert [*loaders_of(["torchvision", "timm"], TINY)] == list(LOADERS)[:3]


def test_what_other_libraries_do_not_do_is_said() -> None:
    assert not lacking(TINY)
    other = replace(TINY, augment=replace(TINY.augment, policy="three", crop="simple"))
    assert lacking(other) == "a resized crop in the place of simple, no policy in the place of three"
