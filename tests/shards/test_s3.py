"""Shards in a bucket: a real S3 server on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from shards import places
from shards.dataset import Dataset
from shards.errors import ShardError
from shards.open import Opener, Reading
from shards.reader import Reader

BUCKET = "shards"


@pytest.fixture(scope="module")
def bucket(dataset: Dataset) -> Iterator[str]:
    """The tests' data in a bucket: in our layout under `ours`, as others pack it under `theirs`; its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", url),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for path in dataset.folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"ours/{path.relative_to(dataset.folder)}")
        for split, name in (("train", "train"), ("test", "val")):
            for number, shard in enumerate(dataset.splits[split].shards):
                client.upload_file(
                    str(dataset.folder / split / shard.name), BUCKET, f"theirs/x-{name}-{number:02d}.tar"
                )
        yield url
    server.stop()


def opener(folder: Path) -> Opener:
    return Opener(Reading(cache=str(folder)), lambda text: None, 1)


def equal(found: Dataset, wanted: Dataset) -> bool:
    """Return whether two data sets hold the same bytes and labels."""
    for ours, theirs in (("train", "train"), ("test", "test" if "test" in found.splits else "val")):
        one, other = wanted.splits[ours], found.splits[theirs]
        readers = Reader(one), Reader(other)
        if [readers[0].read(sample) for sample in range(len(one))] != [
            readers[1].read(sample) for sample in range(len(other))
        ] or one.rows["label"].tolist() != other.rows["label"].tolist():
            return False
    return True


def test_a_data_set_of_ours_is_read_from_a_bucket(bucket: str, dataset: Dataset, tmp_path: Path) -> None:
    assert equal(opener(tmp_path).open(f"s3://{BUCKET}/ours"), dataset)


def test_tars_of_others_in_a_bucket_are_listed_and_indexed(bucket: str, dataset: Dataset, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/theirs"
    with pytest.raises(ShardError, match=f"Read each once: vitrail shards index {url}"):
        opener(tmp_path).open(url)
    assert equal(opener(tmp_path).index(url), dataset)
    assert equal(opener(tmp_path).open(url), dataset)


def test_a_list_of_lengths_in_a_bucket_makes_reading_needless(bucket: str, dataset: Dataset, tmp_path: Path) -> None:
    lengths = [shard.samples for shard in dataset.splits["train"].shards]
    names = [f"x-train-{number:02d}.tar" for number in range(len(lengths))]
    info = {"splits": {"train": {"filenames": names, "shard_lengths": lengths}}}
    boto3.client("s3").put_object(Bucket=BUCKET, Key="theirs/_info.json", Body=json.dumps(info).encode())
    index = opener(tmp_path).open(f"s3://{BUCKET}/theirs").splits["train"]
    assert len(index) == 70
    assert Reader(index).read(33) == Reader(dataset.splits["train"]).read(33)


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "OPENING", 1.0)
    with pytest.raises(ShardError, match=r"s3://nobodys/ours: not there\. See whether the address is right\."):
        opener(tmp_path).open("s3://nobodys/ours")
