"""Nothing that a data set or a file of weights brings is executed, whatever is done with it, or controls a terminal.

Beside every image of the shards lie pickles that make a file when they are loaded. In another data set all names are
what a terminal, rich or matplotlib would obey. Places of others name files, splits and commands as they like.
"""

import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from webdataset.compat import WebDataset

from launch import bench, bench_loader, doctor, drill, measured, slurm
from launch.cli import VERBS, call
from pipeline.config import Distill
from pipeline.request import Request
from pipeline.run import carry_out
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import Dataset, read_dataset, write_dataset
from shards.errors import BadRequest, VitrailError
from shards.index import fingerprint, read_index, write_index
from shards.members import index_tar
from tests.http_server import serving
from tests.running import SCRIPT, train_here, vitrail
from tests.tars import pack, picture
from tests.tiny import HERE

PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "data.pyd", "json.pkl")


@dataclass(frozen=True)
class Trap:
    """A pickle that makes a file when it is loaded."""

    sentinel: Path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.sentinel,)


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentinel") / "executed"


@pytest.fixture(scope="module")
def trapped(dataset: Dataset, sentinel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set whose every sample brings pickles."""
    folder = tmp_path_factory.mktemp("trapped") / "data"
    pickled = pickle.dumps(Trap(sentinel))
    indexes = {}
    for split, index in dataset.splits.items():
        (folder / split).mkdir(parents=True)
        parts = []
        for shard in index.shards:
            path = folder / split / shard.name
            add_pickles(index.folder / shard.name, path, pickled)
            contents = index_tar(path)
            parts.append((contents.shard(path.name), contents.rows))
        indexes[split] = write_index(folder / split, parts)
    write_dataset(folder, list(dataset.classes), indexes)
    return folder


def add_pickles(source: Path, target: Path, pickled: bytes) -> None:
    """Copy a tar and put pickles beside every image."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
            if member.name.endswith(".cls"):
                for extension in PICKLES:
                    trap = tarfile.TarInfo(f"{member.name.removesuffix('.cls')}.{extension}")
                    trap.size = len(pickled)
                    new.addfile(trap, io.BytesIO(pickled))


@pytest.fixture(autouse=True)
def untouched(sentinel: Path) -> Iterator[None]:
    """Fail where a test left a sentinel."""
    yield
    executed = sentinel.exists()
    sentinel.unlink(missing_ok=True)
    assert not executed, "a pickle of the data set was executed"


class Here(Executor):
    """Does at once, in this process, what a pool would do in others."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, do: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        AcceleratorState._reset_state(reset_partial_state=True)  # each process has one precision
        done: Future[Any] = Future()
        done.set_result(do(*arguments, **options))
        return done


def session(broken: drill.Drill, fault: str, step: int, last_step: int) -> str:
    """Train in this process what a drill would train in others."""
    train_here(read_dataset(Path(broken.job.data)), broken.folder.path, broken.job.recipe, max_steps=last_step)
    return ""


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have long verbs do little, and in this process."""
    monkeypatch.setattr(measured, "ROUNDS", 1)
    monkeypatch.setattr(bench_loader, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "SETTINGS", {"bf16": bench.SETTINGS["bf16"], "fp32": bench.SETTINGS["fp32"]})
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(drill, "FAULTS", ())
    monkeypatch.setattr(drill, "session", session)
    monkeypatch.setattr(doctor, "all_reduce", lambda *_: doctor.Finding("all-reduce", None, "not tried"))
    monkeypatch.setattr(slurm, "sbatch", lambda script, *_: "not asked")


DATA = ("--data", "{data}", "--data.workers", "0")
OUTPUT = ("--output", "{tmp}/run")
TEACHER = (
    *("--distill.teacher", "resnet20_cifar", "--distill.img-size", "16", "--distill.no-token"),
    *("--distill.weights", "{tmp}/teacher.safetensors", "--distill.store", "{tmp}/store"),
)
RECIPE = str(SCRIPT)

# what each verb is asked to do with the data set
CALLS: dict[str, list[tuple[str, ...]]] = {
    "shards": [("verify", "{data}"), ("show", "{data}"), ("show", "{data}", "--json")],
    "models": [("resnet20_cifar",)],
    "recipes": [("copy", RECIPE, "--output", "{tmp}/copy.py")],
    "import-timm": [("main.py --data-path '{data}'", "--output", "{tmp}/mine.py")],
    "completion": [("bash",)],
    "order": [(RECIPE, *DATA, "--json")],
    "preview": [(RECIPE, *DATA, "--output", "{tmp}/views.png")],
    "plan": [(RECIPE, *DATA, "--gpus-per-node", "2")],
    "doctor": [(RECIPE, *DATA, *OUTPUT)],
    "report": [("{run}", "--output", "{tmp}/page.html")],
    "slurm": [(RECIPE, *DATA, *OUTPUT, "--gpus-per-node", "2")],
    "eval": [("{run}", *DATA), ("{run}", *DATA, "--csv", "{tmp}/answers.csv", "--json")],
    "predict": [("{run}", "{tmp}/image.png")],
    "export": [("{run}", *DATA, "--to", "timm", "--output", "{tmp}/model")],
}
SLOW_CALLS: dict[str, list[tuple[str, ...]]] = {
    "teach": [(RECIPE, *DATA, *TEACHER, "--epochs", "1")],
    "ladder": [(RECIPE, *DATA, *OUTPUT, "--epochs", "1", "--rungs", "linear")],
    "drill": [(RECIPE, *DATA, "--processes", "1")],
    "bench": [("step", RECIPE, *DATA)],
}
CALLS_WITH_PROCESSES: dict[str, list[tuple[str, ...]]] = {
    "shards": [("index", "{data}", "--processes", "1")],
    "bench": [("loader", RECIPE, *DATA), ("recipe", RECIPE, *DATA)],
}
CASES = [
    pytest.param(name, arguments, id=" ".join([name, *arguments[:1]]).replace(RECIPE, "RECIPE"), marks=marks)
    for calls, marks in ((CALLS, ()), (SLOW_CALLS, (pytest.mark.slow,)), (CALLS_WITH_PROCESSES, (pytest.mark.dist,)))
    for name, of_verb in calls.items()
    for arguments in of_verb
]


def test_every_verb_is_tried() -> None:
    assert {*CALLS, *SLOW_CALLS, *CALLS_WITH_PROCESSES} == set(VERBS), "say in CALLS what a new verb is asked"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the collector
def test_the_trap_works(trapped: Path, sentinel: Path) -> None:
    pickle.loads(pickle.dumps(Trap(sentinel)))
    assert sentinel.exists()
    sentinel.unlink()
    # as webdataset's own decoders do
    tars = [str(tar) for tar in (trapped / "train").glob("*.tar")][:1]
    next(iter(WebDataset(tars, shardshuffle=False).decode(only=["pyd"])))
    assert sentinel.exists()
    sentinel.unlink()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm does too
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_verb_executes_nothing_of_a_data_set(
    name: str, arguments: tuple[str, ...], trapped: Path, trained: Path, tmp_path: Path, shortened: None
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    if TEACHER[0] in arguments:
        recipe = replace(HERE, distill=Distill(teacher="resnet20_cifar", img_size=16, token=False))
        write_random_weights(recipe, tmp_path / "teacher.safetensors")
    if name == "report":
        assert train_here(read_dataset(trapped), tmp_path / "run", max_steps=1) == 0
        trained = tmp_path / "run"
    assert call(name, [argument.format(data=trapped, tmp=tmp_path, run=trained) for argument in arguments]) == 0


MARKUP = "[/]n[red]$a_$ :smile:"  # of rich, of matplotlib; it may be the name of a folder
ESCAPE = "\x1b[31m\x9b2J"


@pytest.fixture(scope="module")
def oddly_named(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set whose keys, classes and folder have names that say more than they should."""
    folder = tmp_path_factory.mktemp("odd") / MARKUP
    indexes = {}
    for split, index in dataset.splits.items():
        (folder / split).mkdir(parents=True)
        parts = []
        for shard in index.shards:
            path = folder / split / shard.name
            with tarfile.open(index.folder / shard.name) as old, tarfile.open(path, "w") as new:
                for member in old:
                    content = old.extractfile(member)
                    member.name = f"{ESCAPE}[/]{member.name}"
                    new.addfile(member, content)
            contents = index_tar(path)
            parts.append((contents.shard(path.name), contents.rows))
        indexes[split] = write_index(folder / split, parts)
    write_dataset(folder, [f"{number}{ESCAPE}{MARKUP}" for number in range(len(dataset.classes))], indexes)
    return folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm does too
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_verb_shows_names_as_they_are_and_obeys_none(
    name: str,
    arguments: tuple[str, ...],
    oddly_named: Path,
    trained: Path,
    tmp_path: Path,
    shortened: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # in a line each
    root = tmp_path / MARKUP
    recipe = root / f"{MARKUP}.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        "from dataclasses import replace\nfrom tests.tiny import TINY\n"
        f"RECIPE = replace(TINY, name={MARKUP!r})\n"
    )  # fmt: skip
    if TEACHER[0] in arguments:
        write_random_weights(
            replace(HERE, distill=Distill(teacher="resnet20_cifar", img_size=16, token=False)),
            root / "teacher.safetensors",
        )
    if name == "report":
        assert train_here(read_dataset(oddly_named), root / "run", max_steps=1) == 0
        trained = root / "run"
    Image.new("RGB", (9, 9)).save(root / "image.png")
    named = {"{data}": str(oddly_named), "{tmp}": str(root), "{run}": str(trained)}
    odd = [re.sub(r"{\w+}", lambda found: named[found[0]], argument) for argument in arguments]
    assert call(name, [str(recipe) if argument == RECIPE else argument for argument in odd]) == 0
    out, err = capfd.readouterr()
    assert not {"\x1b", "\x9b"} & {*out, *err}
    if "--json" not in arguments and name not in ("bench", "completion", "models", "slurm"):  # which name nothing
        assert "[/]" in out + err
        assert "\N{SMILING FACE WITH OPEN MOUTH}" not in out + err
    if name in ("shards", "plan", "drill", "ladder", "teach"):
        assert MARKUP in out


def test_a_key_is_shown_with_its_escapes(oddly_named: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("order", [RECIPE, "--data", str(oddly_named)]) == 0
    assert "\\x1b[31m\\x9b2J[/]0000" in capfd.readouterr().out


@pytest.mark.parametrize("verb", [*VERBS, "\x1b[31m", "--\x1b[31m"])
def test_a_command_line_that_holds_escapes_is_refused_without_them(verb: str) -> None:
    for argument in (f"--{ESCAPE}", ESCAPE):
        said = vitrail(verb, argument, code=2)
        assert "\x1b" not in said.stdout + said.stderr
        assert "\x9b" not in said.stdout + said.stderr


@pytest.mark.slow
def test_a_training_shows_names_as_they_are(
    oddly_named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = replace(HERE, name=MARKUP, epochs=1)
    folder = tmp_path / MARKUP
    assert train_here(read_dataset(oddly_named), folder, recipe) == 0
    assert train_here(read_dataset(oddly_named), folder, recipe) == 0
    assert carry_out(Request(recipe=recipe, data=str(oddly_named), output=str(folder), dry_run=True)) == 0
    out, err = capfd.readouterr()
    assert not {"\x1b", "\x9b"} & {*out, *err}
    assert out.count(MARKUP) > 3
    assert (folder / "learnt.png").exists()


@pytest.mark.slow
def test_a_training_executes_nothing_of_a_data_set(trapped: Path, tmp_path: Path) -> None:
    every_image = replace(HERE, epochs=1, data=replace(HERE.data, epoch="images"))
    assert train_here(read_dataset(trapped), tmp_path / "run", every_image) == 0


@pytest.mark.slow
def test_a_dry_run_executes_nothing_of_a_data_set(trapped: Path, tmp_path: Path) -> None:
    request = Request(recipe=HERE, data=str(trapped), output=str(tmp_path / "run"), dry_run=True)
    assert carry_out(request) == 0


@pytest.mark.parametrize("field", ["model.weights", "distill.weights"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save", "a state dict beside it"])
def test_a_file_of_weights_that_brings_more_is_refused_and_not_executed(
    field: str, kind: str, dataset: Dataset, sentinel: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    trap = Trap(sentinel)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(trap, protocol=2))
    else:
        torch.save(trap if kind == "torch.save" else {"state_dict": {"a": torch.zeros(1)}, "epoch": trap}, path)
    group, name = field.split(".")
    distill = Distill(teacher="resnet20_cifar", img_size=16, token=False) if group == "distill" else Distill()
    recipe = replace(HERE, distill=distill)
    recipe = replace(recipe, **{group: replace(getattr(recipe, group), **{name: str(path)})})
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path / "run", recipe)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert "holds an object of getattr" in problem.sentence
    assert str(path) in problem.sentence


def test_an_index_of_pickled_objects_is_refused_and_not_executed(
    dataset: Dataset, sentinel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    for path in dataset.folder.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(dataset.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy)
    index = folder / "train" / "index.npy"
    index.unlink()
    objects = np.empty(1, dtype=object)
    objects[0] = Trap(sentinel)
    np.save(index, objects, allow_pickle=True)
    with pytest.raises(VitrailError, match="index"):
        read_dataset(folder)


@pytest.fixture(scope="module")
def foreign(sentinel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tars of others, whose every sample brings pickles, under the names that webdataset unpickles too."""
    folder = tmp_path_factory.mktemp("foreign") / "data"
    pickled = pickle.dumps(Trap(sentinel))
    for split, first, count in (("train", 0, 70), ("val", 70, 8)):
        members = [
            member
            for number in range(first, first + count)
            for member in (
                (f"{number:03d}.jpg", picture(number, size=24)),
                (f"{number:03d}.cls", str(number % 4).encode()),
                *((f"{number:03d}.{ending}", pickled) for ending in PICKLES),
            )
        ]
        pack(folder / f"hostile-{split}-0.tar", *members)
    return folder


FOREIGN = ("--data", "{data}", "--data.workers", "0", "--data.cache", "{tmp}/cache")
FOREIGN_CALLS = [
    ("shards", ("show", "{data}", "--data.cache", "{tmp}/cache")),
    ("shards", ("index", "{data}/hostile-train-0.tar", "--data.cache", "{tmp}/cache", "--processes", "1")),
    ("shards", ("verify", "{data}", "--data.cache", "{tmp}/cache", "--processes", "1")),
    ("order", (RECIPE, *FOREIGN, "--json")),
    ("preview", (RECIPE, *FOREIGN, "--output", "{tmp}/views.png")),
    ("plan", (RECIPE, *FOREIGN, "--gpus-per-node", "2")),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("verb", "arguments"), FOREIGN_CALLS)
def test_a_verb_executes_nothing_of_tars_of_others(
    verb: str, arguments: tuple[str, ...], remote: bool, foreign: Path, tmp_path: Path
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    with serving(foreign) as server:
        data = server.url if remote else str(foreign)
        if remote:
            assert call("shards", ["index", data, "--data.cache", f"{tmp_path}/cache", "--processes", "1"]) == 0
        assert call(verb, [argument.format(data=data, tmp=tmp_path) for argument in arguments]) == 0


@pytest.mark.slow
def test_a_training_executes_nothing_of_tars_of_others(foreign: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = replace(HERE, epochs=1, data=replace(HERE.data, cache=str(tmp_path / "cache")))
    request = Request(recipe=recipe, data=str(foreign), output=str(tmp_path / "run"))
    assert carry_out(request) == 0


def hostile_info(folder: Path, split: str = "train", **lists: Any) -> None:
    (folder / "_info.json").write_text(json.dumps({"splits": {split: lists}}))


def hostile_head(folder: Path, edit: Callable[[Any], Any], file: str = "dataset.json") -> None:
    path = folder / file
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def renamed_split(name: str) -> Callable[[Path], None]:
    return lambda folder: hostile_head(folder, lambda head: head | {"splits": {name: head["splits"]["train"]}})


def renamed_tar(name: str) -> Callable[[Path], None]:
    """Return what renames the first tar in an index, with the hashes that go with it."""

    def do(folder: Path) -> None:
        index = read_index(folder / "train")
        shards = [replace(index.shards[0], name=name), *index.shards[1:]]
        mark = fingerprint(shards, index.rows)
        hostile_head(
            folder,
            lambda head: (
                head | {"fingerprint": mark, "shards": [{**head["shards"][0], "name": name}, *head["shards"][1:]]}
            ),
            "train/index.json",
        )
        hostile_head(
            folder, lambda head: head | {"splits": {"train": {**head["splits"]["train"], "fingerprint": mark}}}
        )

    return do


OURS = {
    **{f"a split called {name!r}": (renamed_split(name), "is no name of a folder in it")
       for name in ("../evil", "..", ".", "", "/tmp/evil", "a/b", "a\\b", ".hidden", "x" * 300, "a\0b")},
    **{f"a tar called {name!r}": (renamed_tar(name), "is no name of a file in this folder")
       for name in ("../../x.tar", "/etc/passwd", "a\\x.tar",
                    "http://127.0.0.1:9/x.tar", "pipe:cat http://x.tar",
                    "x\0.tar")},
    "a place elsewhere": (lambda folder: hostile_head(folder, lambda head: head | {"place": "/etc"}),
                          "leads out of it"),
    "no form": (lambda folder: hostile_head(folder, lambda head: []), "torn or altered"),
    "depth": (lambda folder: (folder / "dataset.json").write_bytes(b"[" * 100_000), "torn or altered"),
    "a split's index of depth": (lambda folder: (folder / "train/index.json").write_bytes(b"[" * 100_000),
                                 "torn or altered"),
    "rows of objects": (lambda folder: pickled_rows(folder / "train/index.npy"), "index.npy|not as they were written"),
}  # fmt: skip


def pickled_rows(path: Path) -> None:
    objects = np.empty(1, dtype=object)
    objects[0] = Trap(path.parent / "executed")
    np.save(path, objects, allow_pickle=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("what", OURS)
def test_a_data_set_of_ours_that_was_altered_leads_nowhere(
    what: str, remote: bool, dataset: Dataset, tmp_path: Path
) -> None:
    alter, words = OURS[what]
    folder = tmp_path / "served/data"
    shutil.copytree(dataset.folder, folder)
    alter(folder)
    before = left_behind(tmp_path)
    with serving(folder) as server:
        source = server.url if remote else str(folder)
        said = vitrail("shards", "show", source, "--data.cache", tmp_path / "home/cache", code=1)
    assert re.search(words, said.stderr), said.stderr
    assert "\0" not in said.stderr
    assert elsewhere(left_behind(tmp_path) - before) <= {
        "home",
        "home/cache",
    }


def left_behind(folder: Path) -> set[str]:
    """Return all that lies in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def elsewhere(paths: set[str]) -> set[str]:
    """Return the paths that are not in the cache."""
    return {path for path in paths if not path.startswith("home/cache/")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("remote", [False, True])
def test_tars_with_hostile_names_write_nothing_outside_of_the_cache(
    remote: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served/a/b/data"
    names = ("../../../up", "/tmp/vitrail-absolute", "x\\..\\y", f"{ESCAPE}[/]", "plain")
    members = [
        member
        for number, name in enumerate(names)
        for member in ((f"{name}.jpg", picture(number)), (f"{name}.cls", str(number % 2).encode()))
    ]
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    pack(folder / f"train-{ESCAPE}-0.tar" if not remote else folder / "train-0.tar", *members, link)
    before = left_behind(tmp_path)
    with serving(folder) as server:
        source = server.url if remote else str(folder)
        cache = ("--data.cache", f"{tmp_path}/home/cache")
        if remote:
            assert call("shards", ["index", source, *cache, "--processes", "1"]) == 0
        assert call("shards", ["verify", source, *cache, "--processes", "1"]) == 0
        assert call("shards", ["show", source, *cache]) == 0
    assert elsewhere(left_behind(tmp_path) - before) == {
        "home",
        "home/cache",
    }
    assert not Path("/tmp/vitrail-absolute.jpg").exists()
    out, err = capfd.readouterr()
    assert not {"\x1b", "\x9b"} & {*out, *err}
    assert not list((tmp_path / "home").rglob("*.jpg"))


INFO = {
    "a split above": {"split": "../../../../evil", "filenames": ["train-0.tar"], "shard_lengths": [2]},
    "a split elsewhere": {"split": "/tmp/vitrail-evil", "filenames": ["train-0.tar"], "shard_lengths": [2]},
    "a tar above": {"filenames": ["../../x.tar"], "shard_lengths": [2]},
    "a tar elsewhere": {"filenames": ["/etc/x.tar"], "shard_lengths": [2]},
    "a tar of another server": {"filenames": ["http://127.0.0.1:9/x.tar"], "shard_lengths": [2]},
    "a command": {"filenames": ["pipe:touch http://x.tar"], "shard_lengths": [2]},
    "more samples than there can be": {"filenames": ["train-0.tar"], "shard_lengths": [10**15]},
    "samples below none": {"filenames": ["train-0.tar"], "shard_lengths": [-(10**9)]},
    "half a sample": {"filenames": ["train-0.tar"], "shard_lengths": [2.5]},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("what", INFO)
def test_a_list_of_tars_that_is_hostile_is_refused_and_leaves_nothing(what: str, remote: bool, tmp_path: Path) -> None:
    folder = tmp_path / "served/data"
    pack(folder / "train-0.tar", *[m for n in range(2) for m in ((f"{n}.jpg", picture(n)), (f"{n}.cls", b"%d" % n))])
    hostile_info(folder, **INFO[what])
    before = left_behind(tmp_path)
    with serving(folder) as server:
        source = server.url if remote else str(folder)
        for verb in ("show", "verify"):
            said = vitrail("shards", verb, source, "--data.cache", tmp_path / "home/cache", code=1)
            assert re.search(r"(_info\.json: |is no name of a split)", said.stderr), said.stderr
    assert left_behind(tmp_path) <= before | {"home", "home/cache"}
    assert not Path("/tmp/vitrail-evil").exists()


@pytest.mark.parametrize("source", [
    "pipe:touch {tmp}/executed", "pipe:touch {tmp}/executed #.tar", "{tmp}/list.txt",
    "x.tar::pipe:touch {tmp}/executed",
    "file://{tmp}/x.tar", "ftp://127.0.0.1/x.tar", "zip://x.tar::http://127.0.0.1:9/a.zip",
    "simplecache::http://127.0.0.1:9/x.tar",
    "$(touch {tmp}/executed).tar", "`touch {tmp}/executed`.tar", "; touch {tmp}/executed; .tar",
    "{{0..9}}" * 40 + ".tar",
])  # fmt: skip
def test_no_command_and_no_other_way_is_taken(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/executed\n")
    for verb in ("show", "verify", "index"):
        vitrail("shards", verb, source.format(tmp=tmp_path), "--data.cache", tmp_path / "cache", code=1)
    assert left_behind(tmp_path) <= {"list.txt", "cache"}
