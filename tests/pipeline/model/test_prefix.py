"""The frozen prefix of a network: where it ends, and runs that compute it once."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import Augment, Compute, Finetune, Mix, Model, Recipe
from pipeline.data.batch import TrainingBatches
from pipeline.data.rows import Rows
from pipeline.errors import StoreError
from pipeline.hosting import Hosting
from pipeline.job import REHEARSAL, TRAINING, Job, resolve
from pipeline.model.build import build_student, on_meta
from pipeline.model.prefix import cut_of, prefix, prefix_sha256
from pipeline.model.student import Student
from pipeline.request import Request
from pipeline.rules import recipe_problems, split_problems
from pipeline.session.events import Events
from shards.dataset import Dataset
from shards.errors import BadRequest, SampleError
from shards.reader import Reader
from tests.running import SCRIPT, metrics, run, summary, traces, train_here, vitrail
from tests.tiny import HERE, TINY

VIT = TINY.model  # two blocks, stochastic depth
FIXED = replace(
    HERE,
    augment=Augment(crop="whole", flip=0.0),
    mix=Mix(smoothing=0.1),
    data=replace(HERE.data, repeats=1),
    finetune=Finetune(strategy="partial-1"),
    batch=14,
    virtual_ranks=7,  # an epoch shows all 70 images
)
STEPS = 8  # 1.6 epochs
ROUNDING = 0.1 * TINY.optim.lr  # another order of additions, blown up by Adam, is far less than one step
Usage = namedtuple("Usage", "total used free")


def of(model: Model, compute: Compute | None = None, **finetune: Any) -> Recipe:
    return replace(FIXED, model=model, finetune=Finetune(**finetune), compute=compute or Compute())


def net(name: str, **options: Any) -> Model:
    return Model(name=name, **{"img_size": 32, **options})


def vit(name: str, **options: Any) -> Model:
    return replace(VIT, name=name, **options)


@pytest.mark.parametrize(
    ("recipe", "at"),
    [
        (of(VIT, strategy="linear"), "head"),
        (of(VIT, strategy="classifier"), "head"),
        (of(VIT, strategy="linear", norm=True), "norm"),
        (of(VIT, strategy="linear", head_norm=True), "head"),
        (of(VIT, strategy="partial-1/2"), "blocks.1"),
        (of(VIT, strategy="partial-1", norm=True, head_norm=True), "blocks.1"),
        (of(VIT, strategy="partial-2"), "blocks.0"),
        (of(VIT, Compute(activation_checkpointing=True), strategy="partial-1"), "blocks.1"),
        (of(vit("deit_tiny_distilled_patch16_224"), strategy="linear"), "norm"),  # two heads
        (of(vit("deit_tiny_distilled_patch16_224"), strategy="partial-1"), "blocks.1"),
        (of(vit("vitc_1gf"), strategy="linear"), "head"),
        (of(vit("vitc_1gf"), strategy="partial-1"), "blocks.1"),
        (of(vit("vitp_1gf"), strategy="partial-1"), "blocks.1"),
        (of(vit("vit_small_plain"), strategy="linear"), "head"),
        (of(vit("vit_small_plain"), strategy="partial-1"), "blocks.1"),
        (of(vit("vit_small_plain_mlp_head"), strategy="linear"), "head"),
        (of(vit("vit_small_plain_mlp_head"), strategy="partial-1"), "blocks.1"),
        (of(vit("vit_pytorch_tiny"), strategy="partial-1"), "blocks.1"),
        (of(net("resnet18"), strategy="linear"), "fc"),
        (of(net("resnet18"), strategy="linear", head_norm=True), "fc"),
        (of(net("resnet20_cifar"), strategy="linear"), "linear"),
        pytest.param(of(net("vgg11_bn", dropout=0.5), strategy="linear"), "head", marks=pytest.mark.slow),
        (of(net("convnext_atto", drop_path=0.1), strategy="linear"), "head"),
        (of(net("torchvision:alexnet", dropout=0.5, img_size=64), strategy="linear"), "classifier"),
        (of(net("torchvision:resnet18"), strategy="classifier"), "fc"),
    ],
)
def test_what_follows_the_cut_gives_the_networks_own_logits_and_gradients(recipe: Recipe, at: str) -> None:
    size = recipe.model.img_size
    cut = cut_of(on_meta(recipe), size)
    assert cut.at == at
    built = build_student(recipe)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    keys = torch.tensor([5, 6, 7])
    found = []
    for own in (None, cut):
        student = Student(built, recipe.compute, cut=own).train()
        with torch.no_grad():
            laid_out = images.contiguous(memory_format=student.layout)
            seen = prefix(built, laid_out, cut.at) if own else images
        logits = student(seen, keys)
        logits.square().sum().backward()
        gradients = {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
        assert gradients
        built.zero_grad()
        found.append((logits, gradients))
    assert tuple(seen.shape) == (3, *cut.shape)
    (whole, of_whole), (cached, of_cached) = found
    # rows have another layout in memory, for which kernels may round otherwise
    torch.testing.assert_close(whole, cached, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_whole, of_cached, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "suffix"), [("vgg11_bn", ("pre_logits", "head")), ("torchvision:vgg11_bn", ("classifier",))]
)
def test_all_layers_of_the_head_of_a_vgg_follow_the_cut(name: str, suffix: tuple[str, ...]) -> None:
    assert cut_of(on_meta(of(net(name, dropout=0.5), strategy="classifier")), 32).suffix == suffix


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (of(net("torchvision:squeezenet1_1"), strategy="linear"), "does not fit SqueezeNet: what follows its frozen"),
        (of(net("mixer_s32_224"), strategy="partial-1"), "does not fit MlpMixer: what follows its frozen part"),
        (of(replace(VIT, dropout=0.1), strategy="partial-1"), "here: before what is trained, pos_drop gives something"),
    ],
)
def test_a_network_that_cannot_be_cut_there_is_refused(recipe: Recipe, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        cut_of(on_meta(recipe), recipe.model.img_size)


def test_the_hash_of_the_prefix_is_of_what_comes_before_the_cut_alone() -> None:
    def sha(recipe: Recipe) -> str:
        return prefix_sha256(build_student(recipe), cut_of(on_meta(recipe), 16))

    assert sha(of(VIT, strategy="partial-1")) == sha(of(VIT, strategy="partial-1/2", head_norm=True))
    assert sha(of(VIT, strategy="partial-1")) != sha(of(VIT, strategy="linear"))
    assert sha(of(VIT, strategy="linear")) != sha(replace(of(VIT, strategy="linear"), seed=1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finetune": Finetune(strategy="full")}, "--finetune.strategy full does not leave as it is. It is for linear"),
        ({"finetune": Finetune(strategy="gradual", head_epochs=1)}, "--finetune.strategy gradual does not leave"),
        ({"finetune": Finetune(strategy="attention")}, "--finetune.strategy attention does not leave"),
        ({"augment": Augment(crop="padded", flip=0.5, erase=0.1)},
         "nothing may be drawn. Take --augment.crop whole --augment.flip 0.0 --augment.erase 0.0"),
        ({"augment": Augment(crop="whole", flip=0.0, policy="three")}, "Take --augment.policy rand"),
        ({"augment": Augment(crop="resized", scale=(0.5, 1.0), flip=0.0)},
         "Take --augment.crop whole --augment.scale 0.08 1.0"),
        ({"mix": Mix(mixup_alpha=0.2), "data": replace(FIXED.data, repeats=3)},
         "Take --mix.mixup_alpha 0.0 --data.repeats 1".replace("_", "-")),
        ({"data": replace(FIXED.data, balance=True)}, "Take --data.no-balance"),
        ({"distill": replace(FIXED.distill, teacher="resnet20_cifar")}, "nothing is decoded any more that --distill"),
    ],
)  # fmt: skip
def test_a_recipe_whose_views_or_weights_do_not_stay_is_refused(changes: dict[str, Any], says: str) -> None:
    recipe = replace(FIXED, **changes)
    cached = replace(recipe, finetune=replace(recipe.finetune, cache="somewhere"))
    found = [problem.sentence for problem in recipe_problems(cached) if problem.field == "finetune.cache"]
    assert len(found) == 1
    assert says in found[0]
    assert not [problem for problem in recipe_problems(recipe) if problem.field == "finetune.cache"]


def cached(folder: Path, recipe: Recipe = FIXED, **finetune: Any) -> Recipe:
    return replace(recipe, finetune=replace(recipe.finetune, cache=str(folder), **finetune))


@pytest.mark.parametrize("engine", ["fsdp2", "zero1", "zero3"])
def test_engines_that_divide_weights_are_refused(dataset: Dataset, tmp_path: Path, engine: Any) -> None:
    request = Request(recipe=cached(tmp_path), data=str(dataset.folder), output=str(tmp_path / "run"))
    with pytest.raises(BadRequest, match=rf"--finetune.cache is for one process or DDP, not for {engine}"):
        resolve(request, REHEARSAL, Hosting(engine=engine))


def test_labels_that_come_with_the_shards_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    remote = replace(dataset, splits={"train": replace(dataset.splits["train"], known=None)})
    (problem,) = split_problems(cached(tmp_path), remote)
    assert problem.sentence.startswith("--finetune.cache goes by the labels of all images, and those of")
    assert not list(split_problems(FIXED, remote))


def job_of(dataset: Dataset, tmp_path: Path, **finetune: Any) -> Job:
    recipe = cached(tmp_path / "cache", **finetune)
    return resolve(Request(recipe=recipe, data=str(dataset.folder), output=str(tmp_path / "run")), TRAINING, Hosting())


def test_a_disk_that_is_too_small_is_a_problem(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 70 * 5 * 32 * 4  # tokens of the tiny ViT
    (tmp_path / "cache").mkdir()
    small = tmp_path / "cache"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1 if path == small else 1 << 40))
    with pytest.raises(
        BadRequest, match=r"blocks.1: 0 MB are free, what the frozen part gives of 70 images needs 0 MB"
    ):
        job_of(dataset, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 40))
    assert job_of(dataset, tmp_path).rows.bytes * 70 == needed


def test_loader_workers_get_room_for_rows_that_are_larger_than_pixels(dataset: Dataset, tmp_path: Path) -> None:
    job = job_of(dataset, tmp_path)  # rows of 640 bytes, pixels of 768
    assert job.cut
    assert job.shared_memory(1) == replace(job, cut=None).shared_memory(1)
    wide = replace(job, cut=job.cut._replace(shape=(500, 32)))
    assert wide.shared_memory(1) > replace(job, cut=None).shared_memory(1) + 64_000 * FIXED.rank_batch


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a cache, of one that fills it, and of one that finds it filled."""
    folder = tmp_path_factory.mktemp("prefix")
    for name, recipe in (("plain", FIXED), ("filling", cached(folder / "cache"))):
        assert train_here(dataset, folder / name, recipe, max_steps=STEPS, trace_samples=True) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBatches, "_load", None)  # nothing is read or decoded
        patch.setattr(Events, "_show", None)  # nor shown
        recipe = cached(folder / "cache")
        assert train_here(dataset, folder / "filled", recipe, max_steps=STEPS, trace_samples=True) == 0
    return folder


def sha256(folder: Path) -> str:
    return str(summary(folder)["weights_sha256"])


def test_a_cached_run_is_equal_but_for_rounding_and_a_second_one_to_the_last_bit(runs: Path) -> None:
    compare(runs / "plain", runs / "filling")
    assert sha256(runs / "filling") == sha256(runs / "filled")
    assert [path.name for path in (runs / "cache").iterdir()] == ["blocks.1"]


def compare(one: Path, other: Path) -> None:
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < ROUNDING
    losses = [[line["loss"] for line in metrics(folder, "train")] for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_that_goes_on_after_a_kill_is_equal_to_the_last_bit_to_one_unbroken(
    dataset: Dataset, runs: Path, tmp_path: Path
) -> None:
    recipe = cached(tmp_path / "cache")
    assert train_here(dataset, tmp_path / "run", recipe, max_steps=5) == 0
    shutil.rmtree(
        tmp_path / "run/checkpoints/step-00000005"
    )  # killed before: rows of a step are there that is done again
    job = job_of(dataset, tmp_path)
    assert job.rows
    assert job.rows.count == 70
    marks = np.fromfile(job.rows.folder / "rows.crc", "<u4")
    for rank in range(3):  # and some half written
        marks[job.order.views(4, rank).samples[0]] = 1
    marks.tofile(job.rows.folder / "rows.crc")
    assert train_here(dataset, tmp_path / "run", recipe, max_steps=STEPS) == 0
    assert sha256(tmp_path / "run") == sha256(runs / "filling")


def test_another_rate_seed_and_half_of_a_block_read_the_same_rows(
    dataset: Dataset, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = str(runs / "plain")  # its first block is that of the seed 0
    recipe = cached(runs / "cache", strategy="partial-1/2")
    recipe = replace(
        recipe, seed=3, model=replace(VIT, weights=start), optim=replace(HERE.optim, lr=1e-2), batch=10, virtual_ranks=2
    )
    monkeypatch.setattr(TrainingBatches, "_load", None)
    assert train_here(dataset, tmp_path / "run", recipe, max_steps=2) == 0
    assert "blocks.1: 0.6 kB an image, 0.0 MB of all; 70 images are there" in capsys.readouterr().out


def test_rows_of_other_weights_views_or_precision_are_refused(dataset: Dataset, runs: Path, tmp_path: Path) -> None:
    recipe = cached(runs / "cache")
    bf16 = replace(recipe, precision="bf16", augment=replace(recipe.augment, interpolation="bilinear"))
    with pytest.raises(BadRequest) as refused:
        train_here(dataset, tmp_path / "run", bf16)
    said = str(refused.value)
    assert "blocks.1 holds outputs for precision = fp32, the request says bf16 (--precision)." in said
    assert (
        "holds outputs for augment.interpolation = bicubic, the request says bilinear (--augment.interpolation)."
        in said
    )
    with pytest.raises(StoreError, match=r"blocks.1 holds outputs for weights of the prefix = "):
        train_here(dataset, tmp_path / "run", replace(recipe, seed=1))


def test_an_image_that_cannot_be_used_gives_no_row(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reader.read

    def broken(self: Reader, sample: int) -> bytes:
        if sample == 11 and self.index.folder.name == "train":
            raise SampleError("torn")
        return read(self, sample)

    monkeypatch.setattr(Reader, "read", broken)
    recipe = cached(tmp_path / "cache")
    recipe = replace(recipe, data=replace(recipe.data, max_bad=0.1))
    assert train_here(dataset, tmp_path / "run", recipe, max_steps=7) == 0
    rows = job_of(dataset, tmp_path).rows
    assert rows
    there = rows.read(np.arange(70))[1]
    assert not there[11]
    assert there.sum() >= 67  # one more of its batch may have been shown there alone


def test_steps_that_are_cached_are_traced(runs: Path) -> None:
    assert traces(runs / "filled") == traces(runs / "plain") != []


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_kept_and_keeps_nothing(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(dataset, tmp_path / "run", cached(tmp_path / "cache"), dry_run=True) == 0
    said = capsys.readouterr().out
    assert "0.6 kB an image" in said.replace("│", " ")
    assert not (tmp_path / "cache").exists()


FLAGS = ("--augment.crop", "whole", "--augment.flip", 0, "--augment.rand-ops", 0, "--augment.erase", 0,
         "--mix.mixup-alpha", 0, "--mix.cutmix-alpha", 0, "--mix.switch-prob", 0.5, "--data.repeats", 1,
         "--batch", 14, "--virtual-ranks", 7, "--finetune.strategy", "partial-1")  # fmt: skip


@pytest.mark.dist
def test_three_processes_with_loader_workers_fill_and_read_the_same_cache(
    dataset: Dataset, runs: Path, tmp_path: Path
) -> None:
    run(SCRIPT, "--data", dataset.folder, "--output", tmp_path / "run", *FLAGS, "--max-steps", STEPS,
        "--finetune.cache", tmp_path / "cache", processes=3)  # fmt: skip
    compare(runs / "plain", tmp_path / "run")
    rows, of_one = (Rows(folder / "cache/blocks.1", (5, 32)) for folder in (tmp_path, runs))
    assert rows.count == 70
    np.testing.assert_allclose(*(of.read(np.arange(70))[0] for of in (rows, of_one)), atol=1e-5)


@pytest.mark.slow
def test_a_ladder_gives_each_cut_files_of_its_own_and_says_which_rungs_do_without(
    dataset: Dataset, tmp_path: Path
) -> None:
    said = vitrail("ladder", SCRIPT, "--data", dataset.folder, "--output", tmp_path / "ladder", *FLAGS[:-2],
                   "--max-steps", 2, "--finetune.cache", tmp_path / "cache", "--rungs", "linear", "partial-1/2",
                   "partial-1", "full").stdout  # fmt: skip
    assert "full: without --finetune.cache, as no first part of the network stays as it is" in said
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["blocks.1", "head"]
