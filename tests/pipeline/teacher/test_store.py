"""Stored teacher outputs: the files, and runs that write and read them."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from pipeline.config import Compute, Distill, Recipe
from pipeline.data.order import Order
from pipeline.errors import StoreError
from pipeline.fingerprints import DATA, TEACHER, VIEWS
from pipeline.hosting import Hosting, build_accelerator
from pipeline.job import FILLING, resolve
from pipeline.request import Request
from pipeline.session import fill
from pipeline.teacher import outputs
from pipeline.teacher.store import OUTPUTS, Store, path_of, store_fingerprint
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import Dataset
from shards.errors import BadRequest
from shards.files import write_json
from tests.running import SCRIPT, TIMEOUT, metrics, run, start, summary, traces, train_here, vitrail
from tests.tiny import HERE, TINY

ORDER = Order(shard_sizes=(40,), seed=0, batch=12, virtual_ranks=3)  # 3 steps an epoch, 4 views a rank and step
RECORDS = np.arange(1, 9, dtype=np.uint16).reshape(4, 2)


def a_store(folder: Path, width: int = 2) -> Store:
    return Store(folder, ORDER, width, {})


def test_records_come_back_and_missing_ones_are_known(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    assert store.read(4, 1) is None
    store.write(4, 1, RECORDS)
    for reader in (store, a_store(tmp_path)):
        np.testing.assert_array_equal(reader.read(4, 1), RECORDS)
        assert reader.read(3, 1) is None
        assert reader.read(4, 0) is None


def test_a_finished_file_is_as_long_as_its_outputs_and_a_checksum(tmp_path: Path) -> None:
    order = Order(shard_sizes=(10_000,), seed=0, batch=64, virtual_ranks=1)
    for width, a_view in ((1, 2), (20, 40)):  # hard: 2 bytes; soft with k = 10: 4 k
        folder = tmp_path / str(width)
        store = Store(folder, order, width, {})
        for step in range(order.steps_per_epoch):
            store.write(step, 0, np.ones((64, width), np.uint16))
        assert not store.missing(0, 0)
        stored = sum(path.stat().st_size for path in folder.rglob("*.*"))
        views = order.steps_per_epoch * 64
        assert a_view <= stored / views <= 1.05 * a_view


def test_an_altered_file_is_recognised(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in range(3):
        store.write(step, 0, RECORDS)
    path = path_of(tmp_path, 0, 0)
    np.testing.assert_array_equal(a_store(tmp_path).read(2, 0), RECORDS)
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="torn or altered"):
        a_store(tmp_path).read(0, 0)


def test_a_file_that_a_kill_left_half_is_gone_on_with(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in range(2):
        store.write(step, 0, RECORDS)
    part = path_of(tmp_path, 0, 0).with_suffix(".part")
    os.truncate(part, part.stat().st_size - 5)  # in the middle of a block
    again = a_store(tmp_path)
    assert again.missing(0, 0) == [1, 2]
    assert again.missing(1, 1) == range(3, 6)  # nothing is there yet
    for step in (1, 2):
        again.write(step, 0, RECORDS)
    assert not again.missing(0, 0)
    np.testing.assert_array_equal(a_store(tmp_path).read(1, 0), RECORDS)


def test_a_bit_that_flips_in_an_unfinished_file_is_asked_for_again(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in range(2):
        store.write(step, 0, RECORDS)
    part = path_of(tmp_path, 0, 0).with_suffix(".part")
    content = bytearray(part.read_bytes())
    content[1] ^= 4
    part.write_bytes(content)
    again = a_store(tmp_path)
    assert again.read(0, 0) is None
    np.testing.assert_array_equal(again.read(1, 0), RECORDS)


def test_two_jobs_may_write_the_same_outputs(tmp_path: Path) -> None:
    first, second = a_store(tmp_path), a_store(tmp_path)
    for step in range(3):
        for store in (first, second):
            store.write(step, 0, RECORDS)
    assert [path.name for path in (tmp_path / "epoch-0000").iterdir()] == ["rank-000.bin"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    os.symlink("/dev/full", (path_of(tmp_path, 0, 0).with_suffix(".part")).parent.mkdir() or
               path_of(tmp_path, 0, 0).with_suffix(".part"))  # fmt: skip
    with pytest.raises(StoreError, match=r"rank-000.part: cannot be written \(No space left"):
        store.write(0, 0, RECORDS)


def test_a_folder_with_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="neither empty nor a store"):
        OUTPUTS.differences(tmp_path, {})
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match="torn or altered"):
        OUTPUTS.differences(tmp_path, {})


def test_a_store_that_another_job_begins_while_the_folder_is_looked_at_is_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".store.json.other-node.7.tmp").touch()  # half written there
    assert OUTPUTS.differences(tmp_path, {}) == []
    iterdir = Path.iterdir

    def begun_beside(folder: Path) -> Iterator[Path]:
        write_json(folder / "store.json", {"format_version": OUTPUTS.version, "fingerprint": {}})
        (folder / "epoch-0000").mkdir()
        return iterdir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", begun_beside)
        assert OUTPUTS.differences(tmp_path, {}) == []


def test_a_store_that_another_job_began_meanwhile_is_not_written_into(tmp_path: Path) -> None:
    Store(tmp_path, ORDER, 2, {"seed": 1})
    with pytest.raises(StoreError, match=r"holds outputs for seed = 1, the request says 2 \(--seed\)"):
        Store(tmp_path, ORDER, 2, {"seed": 2})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny recipe with a distillation token and a CNN that never learnt anything as its teacher."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    recipe = replace(HERE, model=replace(HERE.model, name="deit_tiny_distilled_patch16_224"),
                     distill=Distill(teacher="resnet20_cifar", weights=str(path)))  # fmt: skip
    write_random_weights(recipe, path)
    return recipe


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: Recipe) -> None:
        raise AssertionError("the teacher was built")

    monkeypatch.setattr(outputs, "build_teacher", refuse)


def stored(recipe: Recipe, folder: Path, **changes: object) -> Recipe:
    return replace(recipe, distill=replace(recipe.distill, store=str(folder), **changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "hard"},
        {"loss": "hard", "token": False},
        {"loss": "soft", "top": 2, "tau": 3.0, "weight": 0.1},
    ],
)
def test_a_student_of_the_store_is_bit_equal_to_one_of_the_live_teacher(
    dataset: Dataset, taught: Recipe, tmp_path: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(taught, distill=replace(taught.distill, **changes))
    if not recipe.distill.token:
        recipe = replace(recipe, model=TINY.model)
    train_here(dataset, tmp_path / "live", recipe)
    train_here(dataset, tmp_path / "writes", stored(recipe, tmp_path / "store"))
    monkeypatch.setattr(outputs, "build_teacher", lambda recipe: pytest.fail("the teacher was built"))
    train_here(dataset, tmp_path / "reads", stored(recipe, tmp_path / "store"))
    hashes = {summary(tmp_path / name)["weights_sha256"] for name in ("live", "writes", "reads")}
    assert len(hashes) == 1
    lines = [metrics(tmp_path / name, "train") for name in ("live", "reads")]
    assert [line["agreement"] for line in lines[0]] == [line["agreement"] for line in lines[1]]
    assert all(0 <= line["agreement"] <= 1 for line in lines[0])
    scores = metrics(tmp_path / "live", "eval")[0]
    assert ("top1_class" in scores) == ("top1_distilled" in scores) == recipe.distill.token


@pytest.mark.dist
@pytest.mark.usefixtures("no_teacher")
def test_another_student_on_another_hosting_reads_the_same_store(
    dataset: Dataset, taught: Recipe, tmp_path: Path
) -> None:
    flags = ("--data", dataset.folder, "--distill.teacher", "resnet20_cifar",
             "--distill.weights", taught.distill.weights, "--distill.store", tmp_path / "store")  # fmt: skip
    run(SCRIPT, *flags, "--output", tmp_path / "two", "--distill.no-token", "--trace-samples", processes=2)
    assert len(list((tmp_path / "store").rglob("*.bin"))) == 4 * 3  # epochs, virtual ranks
    assert not list((tmp_path / "store").rglob("*.part"))
    other = replace(taught, model=replace(taught.model, depth=1, drop_path=0.0), ema=replace(taught.ema, decay=0.0))
    train_here(dataset, tmp_path / "one", stored(other, tmp_path / "store"), trace_samples=True)
    assert traces(tmp_path / "one") == traces(tmp_path / "two")


@pytest.mark.dist
def test_a_run_that_was_killed_while_it_stored_goes_on(dataset: Dataset, taught: Recipe, tmp_path: Path) -> None:
    flags = ("--data", dataset.folder, "--distill.teacher", "resnet20_cifar", "--distill.no-token",
             "--distill.weights", taught.distill.weights)  # fmt: skip
    run(SCRIPT, *flags, "--output", tmp_path / "unbroken")
    flags += ("--distill.store", tmp_path / "store", "--output", tmp_path / "killed")
    for step in (3, 9):
        process = start(SCRIPT, *flags)
        while len(metrics(tmp_path / "killed", "train") if (tmp_path / "killed/metrics.jsonl").exists() else []) < step:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
    run(SCRIPT, *flags)
    assert summary(tmp_path / "killed")["weights_sha256"] == summary(tmp_path / "unbroken")["weights_sha256"]
    assert len(list((tmp_path / "store").rglob("*.bin"))) == 12


@pytest.mark.slow
def test_a_cyclic_store_shows_its_views_again(dataset: Dataset, taught: Recipe, tmp_path: Path) -> None:
    recipe = stored(taught, tmp_path / "store", store_epochs=2)
    train_here(dataset, tmp_path / "run", recipe, trace_samples=True)
    assert len(list((tmp_path / "store").rglob("*.bin"))) == 2 * 3
    seen = [(line["virtual_rank"], line["views"]) for line in traces(tmp_path / "run")]
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    losses = [line["loss"] for line in metrics(tmp_path / "run", "train")]
    assert len(set(losses)) == len(losses)


@pytest.mark.slow
def test_other_views_or_another_teacher_are_refused_with_what_differs(
    dataset: Dataset, taught: Recipe, tmp_path: Path
) -> None:
    train_here(dataset, tmp_path / "run", stored(taught, tmp_path / "store"), max_steps=1)
    write_random_weights(taught, tmp_path / "other.safetensors")
    changed = stored(taught, tmp_path / "store", weights=str(tmp_path / "other.safetensors"))
    changed = replace(changed, seed=5, augment=replace(changed.augment, erase=0.1))
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path / "second", changed)
    found = caught.value.problems
    for word in ("(--seed)", "(--augment.erase)", "teacher's weights"):
        assert any(word in problem.sentence for problem in found)
    assert len(found) == 3
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
def test_a_run_with_other_weights_of_its_teacher_is_not_resumed(
    dataset: Dataset, taught: Recipe, tmp_path: Path
) -> None:
    train_here(dataset, tmp_path / "run", taught, max_steps=2)
    write_random_weights(taught, tmp_path / "other.safetensors")
    other = replace(taught, distill=replace(taught.distill, weights=str(tmp_path / "other.safetensors")))
    with pytest.raises(BadRequest, match="was made with teacher's weights = "):
        train_here(dataset, tmp_path / "run", other)


def test_bad_requests_are_named_together(dataset: Dataset, taught: Recipe, tmp_path: Path) -> None:
    wrong = replace(taught, model=TINY.model, distill=replace(taught.distill, weights=str(tmp_path / "none.pth")))
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path / "run", wrong)
    assert [problem.field for problem in caught.value.problems] == ["model.name", "distill.weights"]
    assert "no distillation token" in str(caught.value)
    assert "none.pth: no such file" in str(caught.value)
    for changes, message in (
        ({"loss": "soft"}, "--distill.top how many classes"),
        ({"top": 2}, "--distill.top 2 is for --distill.loss soft"),
        ({"loss": "soft", "top": 9}, "more than the 4 classes"),
        ({"teacher": "resnet2o_cifar"}, "near: .*resnet20_cifar"),
        ({"teacher": "", "weights": ""}, "has no meaning without --distill.teacher"),
    ):
        with pytest.raises(BadRequest, match=message):
            train_here(dataset, tmp_path / "run", stored(taught, tmp_path / "store", **changes))
    assert not (tmp_path / "store").exists()


def test_the_fingerprint_has_no_field_of_the_student_or_the_hosting(taught: Recipe) -> None:
    names = set(store_fingerprint(taught, {DATA: "d", VIEWS: "v", TEACHER: "t"}))
    assert {"seed", "batch", "virtual_ranks", "augment.erase", "mix.prob", "model.img_size"} <= names
    assert not {"model.name", "optim.lr", "epochs", "mix.smoothing", "distill.weight", "distill.store"} & names


@pytest.mark.slow
def test_a_store_has_no_outputs_of_views_that_stand_in_for_others(
    dataset: Dataset, taught: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    index = dataset.splits["train"]
    with (folder / "train" / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.rows["offset"][5]) + 30)
        file.write(b"\0\0\0\0")
    damaged = replace(dataset, folder=folder)
    some = replace(taught, model=TINY.model, data=replace(taught.data, max_bad=0.1),
                   distill=replace(taught.distill, token=False))  # fmt: skip
    assert train_here(damaged, tmp_path / "live", some) == 0
    assert train_here(damaged, tmp_path / "writes", stored(some, tmp_path / "store")) == 0
    assert len({summary(tmp_path / name)["weights_sha256"] for name in ("live", "writes")}) == 1
    flags = (SCRIPT, "--distill.teacher", "resnet20_cifar", "--distill.no-token", "--distill.weights",
             taught.distill.weights, "--distill.store", tmp_path / "store", "--data.workers", 0)  # fmt: skip
    said = vitrail("teach", *flags, "--data", folder, "--data.max-bad", 0.1).stdout
    assert "not usable: " in said
    assert " batches have such samples" in said
    assert ": 0 outputs added" in said
    assert "of 70 training samples cannot be used" in vitrail("teach", *flags, "--data", folder, code=1).stderr
    mended = vitrail("teach", *flags, "--data", dataset.folder).stdout
    assert "outputs added" in mended
    assert ": 0 outputs" not in mended


@pytest.mark.slow
def test_the_processes_of_a_launcher_share_the_work_of_teach(
    dataset: Dataset, taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(hosting: Hosting, compute: Compute) -> Accelerator:
        return build_accelerator(replace(hosting, processes=1, process=0), compute)

    monkeypatch.setattr(fill, "build_accelerator", alone)  # one of a group, whose others are not here
    request = Request(recipe=stored(taught, tmp_path / "store", token=False), data=str(dataset.folder))
    request = replace(request, recipe=replace(request.recipe, model=TINY.model))
    job = resolve(request, FILLING, Hosting(processes=2))
    added = [
        fill.fill_store(replace(job, hosting=replace(job.hosting, process=process)), part=part, parts=2).outputs
        for part, process in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert sum(added) == 4 * 5 * 12  # epochs, steps, views: nothing was asked twice
    assert added == [sum(added) // 4] * 4
    assert len(list((tmp_path / "store").rglob("*.bin"))) == 12


@pytest.mark.slow
def test_vitrail_teach_fills_a_store_in_parts(
    dataset: Dataset, taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (SCRIPT, "--data", dataset.folder, "--distill.teacher", "resnet20_cifar", "--distill.no-token",
             "--distill.weights", taught.distill.weights, "--distill.store", tmp_path / "store")  # fmt: skip
    for part in range(3):
        assert "outputs added" in vitrail("teach", *flags, "--data.workers", 0, "--part", part, "--parts", 3).stdout
    assert len(list((tmp_path / "store").rglob("*.bin"))) == 12
    assert " 0 outputs added" in vitrail("teach", *flags, "--data.workers", 0).stdout
    monkeypatch.setattr(outputs, "build_teacher", lambda recipe: pytest.fail("the teacher was built"))
    student = replace(taught, model=TINY.model)
    train_here(dataset, tmp_path / "run", stored(student, tmp_path / "store", token=False))
    assert "--distill.store is missing" in vitrail("teach", *flags[:-2], code=2).stderr
    assert "--part 3 of --parts 3" in vitrail("teach", *flags, "--part", 3, "--parts", 3, code=2).stderr
