"""Streams: a run on tars behind a URL is the run on local files, wherever it is cut, and fetches what it shows."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Recipe
from pipeline.data.batch import TrainingBatches
from shards import places
from shards.dataset import Dataset
from shards.errors import BadRequest, SampleError, ShardError
from shards.index import Index
from shards.open import Opener, Reading
from shards.synthetic import make_dataset
from tests.http_server import Answer, Server, serving
from tests.running import PROGRAMS, SCRIPT, TIMEOUT, run, start, summary, train_here
from tests.tiny import HERE

STEPS = 10


@pytest.fixture(scope="module")
def served(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' data behind HTTP: in our layout, and in that of the hub's ImageNet, as others pack it."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(dataset.folder, folder / "ours")
    (folder / "theirs").mkdir()
    info: dict[str, dict[str, object]] = {}
    for split, name in (("train", "train"), ("test", "validation")):
        shards = dataset.splits[split].shards
        names = [f"tiny-{name}-{number:04d}.tar" for number in range(len(shards))]
        for shard, theirs in zip(shards, names, strict=True):
            shutil.copy(dataset.folder / split / shard.name, folder / "theirs" / theirs)
        info[name] = {"name": name, "filenames": names, "shard_lengths": [shard.samples for shard in shards]}
    (folder / "theirs" / "_info.json").write_text(json.dumps({"splits": info}))
    with serving(folder) as server:
        yield server


@pytest.fixture
def streaming(tmp_path: Path) -> Recipe:
    """The tests' recipe, with a cache of its own."""
    return replace(HERE, data=replace(HERE.data, cache=str(tmp_path / "cache")))


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run on local files."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_here(dataset, folder, max_steps=STEPS)
    return weights(folder)


def weights(folder: Path) -> str:
    return str(summary(folder)["weights_sha256"])


def opened(url: str, cache: Path, **reading: object) -> Dataset:
    return Opener(Reading(cache=str(cache), **reading), lambda text: None, 1).open(url)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["ours", "theirs", "theirs, here"])
def test_a_run_on_a_stream_is_the_run_on_local_files(
    served: Server, streaming: Recipe, unbroken: str, tmp_path: Path, layout: str
) -> None:
    data = str(served.folder / "theirs") if layout.endswith("here") else f"{served.url}/{layout}"
    for steps in (4, STEPS):  # the second session has a cache of its own, and goes on in mid-epoch
        recipe = replace(streaming, data=replace(streaming.data, cache=str(tmp_path / f"cache {steps}")))
        assert train_here(data, tmp_path / "run", recipe, max_steps=steps) == 0
    assert weights(tmp_path / "run") == unbroken


@pytest.mark.dist
def test_two_processes_that_are_killed_on_a_stream_go_on_to_the_same_weights(
    served: Server, dataset: Dataset, tmp_path: Path
) -> None:
    options = ("--max-steps", STEPS, "--data.cache", tmp_path / "cache")
    run(SCRIPT, "--data", dataset.folder, "--output", tmp_path / "local", *options, processes=2)
    arguments = ("--data", f"{served.url}/theirs", "--output", tmp_path / "run", *options)
    process = start(PROGRAMS / "killed.py", *arguments, processes=2, env={"KILL": "step 7 of process 1"})
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, err
    run(SCRIPT, *arguments, processes=2)
    assert weights(tmp_path / "run") == weights(tmp_path / "local")


def test_a_second_run_fetches_nothing_again(served: Server, streaming: Recipe, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        before = len(served.gets(".tar"))
        train_here(f"{served.url}/theirs", tmp_path / folder, streaming, max_steps=2)
    assert len(served.gets(".tar")) == before


def test_a_node_fetches_what_its_virtual_ranks_show_and_little_more(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", classes=4, size=24, samples={"train": 400}, samples_per_shard=5)
    recipe = replace(
        HERE, batch=20, virtual_ranks=4, data=replace(HERE.data, repeats=1, window=25), epochs=1, augment=HERE.augment
    )
    nodes = []
    with serving(dataset.folder) as server:
        for node in range(2):
            before = server.sent
            index = opened(server.url, tmp_path / f"cache {node}").splits["train"]
            index_bytes = server.sent - before
            batches = TrainingBatches(recipe, index)
            for step in range(batches.order.steps_per_epoch):
                for rank in (2 * node, 2 * node + 1):
                    assert batches[step, rank].samples.size == 5
            nodes.append(server.sent - before - index_bytes)
    whole = sum(shard.bytes for shard in dataset.splits["train"].shards)
    assert all(0.45 < fetched / whole < 0.56 for fetched in nodes)  # a shard at each end of a span belongs to two


def test_a_fresh_stream_needs_two_shards_a_virtual_rank_for_its_first_batch(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", classes=4, size=8, samples={"train": 3000}, samples_per_shard=100)
    recipe = replace(HERE, batch=8, virtual_ranks=1, data=replace(HERE.data, window=2048, repeats=1))
    order = TrainingBatches(recipe, dataset.splits["train"]).order
    seen = {dataset.splits["train"].shard_of(sample) for sample in order.views(0, 0).samples.tolist()}
    assert len(seen) <= 4
    ahead = order.shards_ahead(0, 0, 1)
    assert set(ahead) >= seen


def test_shards_that_are_fetched_ahead_are_those_that_are_read(tmp_path: Path) -> None:
    """For each step: what it reads was expected at that step, and at the one before."""
    sizes = tuple(np.random.Generator(np.random.Philox(key=1)).integers(1, 9, 60).tolist())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for repeats, ranks, window, cycle, subset in (
        (1, 3, 16, 0, 0),
        (3, 2, 64, 0, 0),
        (2, 1, 300, 1, 0),
        (1, 2, 16, 0, 50),
    ):
        order = TrainingBatches(
            replace(
                HERE,
                batch=6 * ranks,
                virtual_ranks=ranks,
                data=replace(HERE.data, repeats=repeats, window=window, subset=subset),
                distill=replace(HERE.distill, store_epochs=cycle),
            ),
            Index(Path(), (), None, starts, ""),
        ).order
        order = replace(order, shard_sizes=sizes)
        for rank in range(ranks):
            before: set[int] = set()
            for step in range(2 * order.steps_per_epoch):
                read = set(np.searchsorted(starts, order.views(step, rank).samples, side="right") - 1)
                ahead = set(order.shards_ahead(step, rank, 2))
                assert read <= ahead
                assert not before or read <= before
                before = ahead


def tampered(served: Server, folder: Path, **info: object) -> Path:
    shutil.copytree(served.folder / "theirs", folder)
    said = json.loads((folder / "_info.json").read_text())
    said["splits"]["train"] |= info
    (folder / "_info.json").write_text(json.dumps(said))
    return folder


def test_a_length_that_is_not_the_tars_ends_the_run_with_its_name(
    served: Server, streaming: Recipe, tmp_path: Path
) -> None:
    folder = tampered(served, tmp_path / "data", shard_lengths=[16, 16, 16, 15, 6])
    with serving(folder) as server, pytest.raises(ShardError, match=r"tiny-train-0003\.tar: holds 16 samples, .* 15"):
        train_here(server.url, tmp_path / "run", streaming, max_steps=20)


def test_a_label_that_the_model_has_no_output_for_ends_the_run_with_its_name(
    served: Server, streaming: Recipe, tmp_path: Path
) -> None:
    recipe = replace(streaming, data=replace(streaming.data, classes=3))
    with pytest.raises(ShardError, match=r"tiny-train-000\d\.tar: sample '\d+' has label 3, of --data\.classes 3"):
        train_here(f"{served.url}/theirs", tmp_path / "run", recipe, max_steps=20)


def test_a_server_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    served: Server, streaming: Recipe, unbroken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LIMIT", 1.0)
    monkeypatch.setattr(places, "LONGEST_WAIT", 0.1)
    shutil.copytree(served.folder / "theirs", tmp_path / "data")
    with serving(tmp_path / "data") as server:
        server.fault = lambda number, asked: Answer(status=500 if asked.path == "tiny-train-0001.tar" else 0)
        with pytest.raises(ShardError, match=r"tiny-train-0001\.tar: cannot be read.*the same command again to go on"):
            train_here(server.url, tmp_path / "run", streaming, max_steps=STEPS)
        server.fault = lambda number, asked: Answer()
        assert train_here(server.url, tmp_path / "run", streaming, max_steps=STEPS) == 0
    assert weights(tmp_path / "run") == unbroken


def test_urls_without_lengths_are_asked_to_be_read_first(served: Server, streaming: Recipe, tmp_path: Path) -> None:
    url = f"{served.url}/theirs/tiny-{{train,validation}}-000{{0..1}}.tar"
    with pytest.raises(BadRequest, match=r"Read each once: vitrail shards index 'http.*' --data\.cache"):
        train_here(url, tmp_path / "run", streaming, max_steps=2)
    dataset = Opener(Reading(cache=streaming.data.cache), lambda text: None, 1).index(url)
    assert {split: len(index) for split, index in dataset.splits.items()} == {"train": 32, "val": 21}
    assert train_here(url, tmp_path / "run", streaming, max_steps=2) == 0


def test_names_that_are_labels_need_the_names_of_the_classes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number, name in enumerate(("newt", "toad", "newt", "toad")):
            buffer = io.BytesIO()
            Image.new("RGB", (24, 24), (number, 0, 0)).save(buffer, "PNG")
            for ending, content in (("png", buffer.getvalue()), ("txt", name.encode())):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "_info.json").write_text(
        json.dumps({"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [4]}}})
    )
    (tmp_path / "names.txt").write_text("newt\ntoad\n")
    recipe = replace(HERE, batch=4, virtual_ranks=1, data=replace(HERE.data, classes=2))
    with serving(folder) as server:
        index = opened(server.url, tmp_path / "a", label="txt").splits["train"]
        with pytest.raises(ShardError, match=r"its labels are names \('newt', 'toad'\).*--data\.class-names FILE"):
            TrainingBatches(recipe, index)[0, 0]
        named = opened(server.url, tmp_path / "b", label="txt", class_names=str(tmp_path / "names.txt"))
    assert named.classes == ("newt", "toad")
    with serving(folder, int(server.url.rpartition(":")[2])):
        assert set(TrainingBatches(recipe, named.splits["train"])[0, 0].labels.tolist()) == {0, 1}


def test_a_bad_sample_of_a_stream_is_replaced_by_one_of_its_window(served: Server, tmp_path: Path) -> None:
    recipe = replace(HERE, data=replace(HERE.data, max_bad=0.5, repeats=1))
    whole = TrainingBatches(recipe, opened(f"{served.url}/theirs", tmp_path / "cache").splits["train"])
    first = whole[0, 1]
    bad = int(first.samples[1])
    read = whole.reader.read

    def damaged(sample: int) -> bytes:
        if sample == bad:
            raise SampleError("damaged")
        return read(sample)

    whole.reader.read = damaged  # type: ignore[method-assign]
    batch = whole[0, 1]
    assert [found.sample for found in batch.unusable] == [bad]
    other = next(iter(whole.order.others(0, 1, 1)))
    assert batch.labels[1] == whole.index.row(other)["label"]
    assert (batch.labels[[0, 2, 3]] == first.labels[[0, 2, 3]]).all()
    assert other in set(first.samples[2:3].tolist()) | {other}
