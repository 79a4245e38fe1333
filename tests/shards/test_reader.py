"""A reader lets go of what it opened: files, threads, and what it holds of a cache."""

import gc
import shutil
import threading
from pathlib import Path

import psutil
import pytest

from shards.cache import _removed
from shards.dataset import Dataset
from shards.open import Opener, Reading
from shards.reader import Reader
from tests.http_server import serving
from tests.running import TIMEOUT

WAYS = ("closed", "forgotten")


def end(readers: list[Reader], way: str) -> None:
    reader = readers.pop()
    if way == "closed":
        reader.close()
    del reader
    gc.collect()


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_ended_has_no_file_open(dataset: Dataset, way: str) -> None:
    def open_tars() -> int:
        """How many there are, those of what earlier tests have left aside."""
        gc.collect()
        return sum(Path(file.path).is_relative_to(dataset.folder) for file in psutil.Process().open_files())

    before = open_tars()
    readers = [Reader(dataset.splits["train"])]
    for sample in range(0, 70, 16):
        readers[0].read(sample)
    assert open_tars() == before + 5
    end(readers, way)
    assert open_tars() == before


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_ended_holds_no_tar_of_a_cache_and_has_no_thread(
    dataset: Dataset, tmp_path: Path, way: str
) -> None:
    shutil.copytree(dataset.folder, tmp_path / "served")
    with serving(tmp_path / "served") as server:
        reading = Reading(cache=str(tmp_path / "cache"))
        index = Opener(reading, lambda text: None, 1).open(server.url).splits["train"]
        assert index.cache
        before = set(threading.enumerate())
        readers = [Reader(index)]
        readers[0].expect("test", range(len(index.shards)))
        content = readers[0].read(0)
        fetching = [thread for thread in set(threading.enumerate()) - before if thread in readers[0]._threads]
        assert fetching
        assert not _removed(index.cache.path(index.tar(0)))
        end(readers, way)
        for thread in fetching:
            thread.join(TIMEOUT)  # one ends with the shard that it is at
            assert not thread.is_alive()
        assert all(_removed(path) for path in index.cache.tars.glob("*.tar"))
        assert Reader(index).read(0) == content
