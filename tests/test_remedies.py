"""Every command that a message tells a person to type: collected from the source, provoked, and run as printed."""

import ast
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import TrainingError
from shards.dataset import read_dataset
from shards.errors import BadRequest, SampleError, ShardError
from shards.indexing import index_dataset
from shards.open import Opener, Reading
from shards.reader import Reader
from shards.synthetic import make_dataset
from shards.verify import verify
from tests.http_server import serving
from tests.running import train_here, vitrail

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"vitrail shards (?P<verb>[a-z]+) (?P<rest>[^\n]*?)(?=\.?$|\.? and )", re.MULTILINE)
NO_REMEDY = ("pipeline/request.py", "launch/cli.py", "shards/errors.py")  # that speak of the commands in help alone


def templates() -> Iterator[tuple[str, str]]:
    """Yield file and pattern of each text in the source that holds a command."""
    for path in (path for package in ("shards", "pipeline", "launch") for path in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in NO_REMEDY:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                text = "".join(str(part) for part in parts if part)
                if "vitrail shards " in text:
                    yield name, "(.|\n)*".join(re.escape(part) for part in parts if isinstance(part, str))


def damage(folder: Path, split: str = "train") -> None:
    """Change the image bytes of all samples of a split."""
    index = read_dataset(folder).splits[split]
    for sample in range(len(index)):
        with (index.folder / index.shards[index.shard_of(sample)].name).open("r+b") as file:
            file.seek(int(index.rows["offset"][sample]))
            file.write(b"\0" * int(index.rows["length"][sample]))


def no_data_set(folder: Path) -> str:
    shutil.rmtree(folder)
    return refusal(lambda: read_dataset(folder))


def no_index(folder: Path) -> str:
    (folder / "dataset.json").unlink()
    return refusal(lambda: read_dataset(folder))


def no_rows(folder: Path) -> str:
    (folder / "train/index.npy").unlink()
    return refusal(lambda: read_dataset(folder))


def tars_in_no_split(folder: Path) -> str:
    for path in (folder / "train").glob("*.tar"):
        path.rename(folder / path.name)
    for left in (folder / "dataset.json", *folder.glob("*/index.*")):
        left.unlink()
    shutil.rmtree(folder / "val")
    return refusal(lambda: read_dataset(folder))


def labels_from_another_number(folder: Path) -> str:
    from tests.shards.test_index import labelled, pack

    shutil.rmtree(folder)
    pack(folder / "train/000000.tar", *labelled(4, 5, 6))
    return refusal(lambda: index_dataset(folder, 1))


def tars_elsewhere_of_no_known_lengths(folder: Path) -> str:
    for left in (folder / "dataset.json", *folder.glob("*/index.*")):
        left.unlink()
    server = stack.enter_context(serving(folder))
    cache = str(folder.with_name("cache"))
    return refusal(lambda: Opener(Reading(cache=cache), lambda _: None).open(server.url))


def missing_shard(folder: Path) -> str:
    dataset = read_dataset(folder)
    (folder / "train" / dataset.splits["train"].shards[0].name).unlink()
    return refusal(lambda: train_here(dataset, folder.with_name("run")))


def bytes_that_changed(folder: Path) -> str:
    index = read_dataset(folder).splits["train"]
    damage(folder)
    return refusal(lambda: Reader(index).read(0))


def an_index_of_other_bytes(folder: Path) -> str:
    index = read_dataset(folder).splits["train"]
    damage(folder)
    return next(problem for problem in verify({"train": index}).problems if "vitrail shards index" in problem)


def nothing_to_evaluate(folder: Path) -> str:
    dataset = read_dataset(folder)
    damage(folder, "val")
    return refusal(lambda: train_here(dataset, folder.with_name("run"), max_steps=1))


SCENARIOS: dict[str, Callable[[Path], str]] = {
    function.__name__: function
    for function in (
        no_data_set,
        no_index,
        no_rows,
        tars_in_no_split,
        labels_from_another_number,
        tars_elsewhere_of_no_known_lengths,
        missing_shard,
        bytes_that_changed,
        an_index_of_other_bytes,
        nothing_to_evaluate,
    )
}
said: dict[str, str] = {}
stack = ExitStack()  # what a scenario opens for as long as its remedy is tried


def refusal(action: Callable[[], object]) -> str:
    """Return what an action that fails says."""
    with pytest.raises((ShardError, SampleError, BadRequest, TrainingError)) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_remedy_works_as_it_is_printed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_dataset(folder, classes=4, size=16, samples={"train": 40, "val": 8})
    with stack:
        said[name] = message = SCENARIOS[name](folder)
        commands = list(COMMAND.finditer(message))
        assert commands, message
        for command in commands:
            arguments = shlex.split(command["rest"].replace("SOURCE", "digits"))
            # `verify` ends with 1 where it names what is wrong, which is what it is for
            done = vitrail("shards", command["verb"], *arguments, code=1 if command["verb"] == "verify" else 0)
            assert str(folder) in done.stdout or arguments[0] in done.stdout
            assert not done.stderr or ": indexing " in done.stderr


def test_every_command_in_the_source_is_one_that_was_run() -> None:
    if said.keys() != SCENARIOS.keys():
        pytest.skip("the scenarios did not all run in this process")
    missed = [
        (file, pattern)
        for file, pattern in templates()
        if not any(re.search(pattern, message) for message in said.values())
    ]
    assert not missed
