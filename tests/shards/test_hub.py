"""Data sets of the hub: `hf://datasets/OWNER/NAME`, against a stand-in of its endpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from shards import places
from shards.cache import Cache
from shards.errors import ShardError
from shards.open import Opener, Reading
from shards.reader import Reader
from tests.hub import Hub, hub
from tests.running import vitrail, vitrail_process
from tests.tars import pack, picture

NAME = "hf://datasets/timm/tiny-wds"
SHARDS = {"train": ("tiny-train-0000.tar", "tiny-train-0001.tar"), "validation": ("tiny-validation-00.tar",)}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, with a data set as timm packs them, and another one in folders and without a list."""
    number = 0
    for split, names in SHARDS.items():
        for name in names:
            members = [
                member
                for sample in range(number, number + 3)
                for member in ((f"{sample}.jpg", picture(sample)), (f"{sample}.cls", str(sample % 2).encode()))
            ]
            pack(tmp_path / "timm" / name, *members)
            pack(tmp_path / "bare" / split / name, *members)
            number += 3
    splits = {split: {"filenames": list(names), "shard_lengths": [3] * len(names)} for split, names in SHARDS.items()}
    (tmp_path / "timm/_info.json").write_text(json.dumps({"splits": splits}))
    (tmp_path / "timm/README.md").write_text("# tiny")
    with hub(timm__tiny_wds=tmp_path / "timm", me__bare=tmp_path / "bare") as server:
        server.datasets = {name.replace("tiny_wds", "tiny-wds"): folder for name, folder in server.datasets.items()}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def opener(tmp_path: Path) -> Opener:
    return Opener(Reading(cache=str(tmp_path / "cache"), cache_limit="1GB"), lambda _: None, processes=1)


@pytest.mark.timeout(300)
def test_a_data_set_of_the_hub_is_read_as_it_is(served: Hub, tmp_path: Path) -> None:
    dataset = opener(tmp_path).open(NAME)
    assert {split: len(index) for split, index in dataset.splits.items()} == {"train": 6, "val": 3}
    assert not any("resolve" in asked and asked.endswith(".tar") for asked in served.asked)  # no download yet
    assert Reader(dataset.splits["val"]).read(1) == picture(7)
    fetched = {asked.rpartition("/")[2] for asked in served.asked if asked.endswith(".tar") and "resolve" in asked}
    assert fetched == {"tiny-validation-00.tar"}


@pytest.mark.timeout(300)
def test_a_data_set_without_a_list_is_listed_and_indexed(served: Hub, tmp_path: Path) -> None:
    cache = ["--data.cache", tmp_path / "cache", "--data.cache-limit", "1GB"]
    said = vitrail("shards", "show", "hf://datasets/me/bare", *cache, code=1).stderr
    assert "vitrail shards index hf://datasets/me/bare" in said
    vitrail("shards", "index", "hf://datasets/me/bare", *cache, "--processes", 1)
    shown = json.loads(vitrail("shards", "show", "hf://datasets/me/bare", *cache, "--json").stdout)
    assert {split: said["samples"] for split, said in shown["splits"].items()} == {"train": 6, "validation": 3}
    assert "all 9 samples" in vitrail("shards", "verify", "hf://datasets/me/bare", *cache, "--processes", 1).stdout


@pytest.mark.timeout(300)
def test_a_shard_is_fetched_in_ranges_and_through_errors_that_pass(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "CHUNK", 4096)
    monkeypatch.setattr(places, "LONGEST_WAIT", 0.01)
    served.failing = 2
    tar = f"{NAME}/tiny-train-0000.tar"
    cache = Cache(tmp_path / "cache", 10**9)
    cache.fetch(tar)
    assert cache.path(tar).read_bytes() == (tmp_path / "timm/tiny-train-0000.tar").read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["hf://datasets/timm/none", "hf://datasets/timm/none/x-train-0.tar"])
def test_what_is_not_there_is_said_at_once(served: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match=r"hf://datasets/timm/none.*: not there, or not for everybody.* hf auth login"):
        opener(tmp_path).index(name)
    with pytest.raises(ShardError, match=r"tiny-train-9.tar: not there. See whether the address is right"):
        opener(tmp_path).index(f"{NAME}/tiny-train-9.tar")
    assert len(served.asked) < 20


@pytest.mark.timeout(300)
def test_a_data_set_that_asks_for_a_login_says_how(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.closed.add("timm/tiny-wds")
    with pytest.raises(ShardError, match="accept the terms on its page, and log in: hf auth login"):
        opener(tmp_path).open(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    fsspec.filesystem("hf", use_listings_cache=False).invalidate_cache()  # as another process
    assert len(opener(tmp_path).open(NAME).splits["train"]) == 6


@pytest.mark.parametrize(("status", "later"), [(401, False), (403, False), (404, False), (429, True), (503, True)])
def test_what_the_hub_answers_may_pass_or_not(status: int, later: bool) -> None:
    request = httpx2.Request("GET", "http://hub")
    error = HfHubHTTPError("no", response=httpx2.Response(status, request=request))
    assert places.passes(error) == later
    assert places.passes(httpx2.ConnectError("no name", request=request))


@pytest.mark.parametrize("name", ["hf://", "hf://x", "hf://datasets/x"])
def test_an_address_that_is_none_is_refused_at_once(served: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match=f"{name}"):
        opener(tmp_path).open(name)


@pytest.mark.dist
def test_vitrail_shows_a_data_set_of_the_hub(served: Hub, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf")}
    said = vitrail_process("shards", "show", NAME, "--data.cache", tmp_path / "cache", "--json", env=env)
    assert json.loads(said.stdout)["splits"]["train"]["samples"] == 6
    refused = vitrail_process("shards", "show", "hf://datasets/no/such", env=env, code=1)
    assert "hf auth login" in refused.stderr
