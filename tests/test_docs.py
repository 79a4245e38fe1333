"""Every command in README.md, docs/, slurm/README.md, CONTRIBUTING.md and the recipes' docstrings does what it says.

What takes seconds is done. What takes longer is judged as the command judges it before it starts: its options are
parsed, and its request is resolved. A command that no rule covers fails.
"""

import ast
import importlib.util
import json
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import numpy as np
import pytest
import torchvision
import tyro
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from safetensors.torch import save_file

from launch.cli import VERBS, call, verb_named
from launch.drill import MakeDrill
from launch.ladder import Ladder, on_rung
from launch.recipe_files import load_recipe
from launch.slurm import Slurm
from launch.timm_flags import spellings
from launch.verb import config_file, engine_named
from pipeline.config import FIELDS, LOCAL_DIR, Recipe
from pipeline.fields import flag
from pipeline.folder import RunFolder
from pipeline.hosting import Hosting, engine_of_config
from pipeline.job import FILLING, PREDICTING, REHEARSAL, Need, resolve
from pipeline.model.build import build_model
from pipeline.model.hub import timm_config
from pipeline.request import OWN_FLAGS, RENAMED, Request, parse
from pipeline.teacher.teacher import write_random_weights
from shards.dataset import write_dataset
from shards.errors import BadRequest
from shards.files import write_json
from shards.index import write_index
from shards.members import Shard, row_dtype
from shards.synthetic import make_dataset
from tests.bench.claims import TABLES, Row
from tests.running import ROOT
from tests.tiny import HERE

PAGES: Final = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
RECIPES: Final = sorted((ROOT / "recipes").glob("[a-z]*.py"))
BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS: Final = ("accelerate", "make", "python", "sbatch", "vitrail")


class Said(NamedTuple):
    """A command, and where it stands."""

    where: str
    command: str


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return [text for named, text in BLOCK.findall(page.read_text()) if named == language]


def of_page(page: Path) -> Iterator[Said]:
    """Yield the commands of a page's bash blocks."""
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield Said(page.name, shlex.join(words))


def of_recipe(path: Path) -> Iterator[Said]:
    """Yield the commands behind `Run:` in a recipe's docstring.

    A line `words: --flags` stands for the last command with these flags. Other lines are prose, and name no flag.
    """
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("Run:")[2]
    last = ""
    for line in map(str.strip, re.sub(r"\\+\n", " ", text).splitlines()):
        if line.startswith(PROGRAMS):
            last = shlex.join(shlex.split(line))
            yield Said(path.name, last)
        elif more := re.fullmatch(r".*: (--.*?)(?: \(.*\))?", line):
            yield Said(path.name, f"{last} {more[1]}")
        else:
            assert "--" not in line, f"{path.name}: {line!r} names a flag, but is no command"


def all_said() -> list[Said]:
    """Return every command once, with the first page that says it."""
    said = [
        *(found for page in PAGES for found in of_page(page)),
        *(found for path in RECIPES for found in of_recipe(path)),
    ]
    return list({found.command: found for found in reversed(said)}.values())[::-1]


def made_classes(folder: Path) -> Path:
    """Make a folder of class folders with small pictures."""
    rng = np.random.default_rng(0)
    for name in ("ash", "beech"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def made_index(folder: Path, recipe: Recipe) -> Path:
    """Make a data set that a recipe can be resolved and ordered on: an index, and tars as large as it says."""
    splits = {}
    images = max(recipe.batch, recipe.data.subset, recipe.data.classes)
    for split, count in (("train", images), ("val", 2), ("test", images)):
        rows = np.zeros(count, row_dtype(8))
        rows["label"] = np.arange(count) % recipe.data.classes
        rows["key"] = [f"{number:08d}".encode() for number in range(count)]
        (folder / split).mkdir(parents=True)
        with (folder / split / "000000.tar").open("wb") as tar:
            tar.truncate(1_000_000)
        splits[split] = write_index(folder / split, [(Shard("000000.tar", count, 1_000_000), rows)])
    write_dataset(folder, [str(number) for number in range(recipe.data.classes)], splits)
    return folder


def with_files(request: Request, scratch: Path) -> Request:
    """Return a request with data, output, teacher and store that are there, in the place of those it names.

    Of starting weights that are somebody's own there is nothing to judge.
    """
    recipe = replace(request.recipe, model=replace(request.recipe.model, weights="", new_head=False))
    distill = recipe.distill
    if distill.weights:
        distill = replace(distill, weights=str(scratch / "teacher.safetensors"))
        write_random_weights(recipe, Path(distill.weights))
    if distill.teacher.startswith(LOCAL_DIR):
        made_run(scratch / "teacher", recipe)
        distill = replace(distill, teacher=f"{LOCAL_DIR}{scratch / 'teacher'}")
    if distill.store:
        distill = replace(distill, store=str(scratch / "store"))
    data = str(made_index(scratch / "data", recipe)) if request.data else ""
    return replace(request, recipe=replace(recipe, distill=distill), data=data, output=str(scratch / "run"))


def made_run(folder: Path, recipe: Recipe) -> None:
    """Make what a finished run of a small CNN leaves for timm."""
    folder.mkdir()
    network = replace(recipe.model, name="resnet20_cifar", patch_size=None, width=None, depth=None, heads=None,
                      weights="", pretrained=False, drop_path=0.0)  # fmt: skip
    save_file(build_model(network, recipe.data.classes, 0).state_dict(), folder / "model.safetensors")
    config = {
        "architecture": network.name,
        "num_classes": recipe.data.classes,
        "num_features": 64,
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": recipe.data.classes, "mean": [0.5] * 3,
                           "std": [0.5] * 3},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def judge(request: Request, given: Sequence[str], need: Need, hosting: Hosting, scratch: Path) -> None:
    """Resolve a request as the command does before it starts.  Raises BadRequest where it would.

    Its model is built where a field is given; `tests/recipes` builds that of each recipe as it is.
    """
    plain = {word for word in given if word.startswith("--")} <= set(OWN_FLAGS)
    resolve(with_files(request, scratch), need._replace(model=not plain), hosting)


def parsed(module: str, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a verb, and the arguments that are none of its own."""
    verb, others = tyro.cli(
        verb_named(module),
        args=arguments,
        return_unknown_args=True,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    return verb, list(others)


def shards(arguments: list[str], scratch: Path) -> None:
    """Do a verb of shards, on a source or data set that is made."""
    verb, others = parsed("shards", arguments)
    assert not others
    if arguments[0] != "build":
        made = make_dataset(scratch / "data", classes=2, size=8, samples={"train": 4})
        assert call("shards", [str(made.folder) if word == verb.source else word for word in arguments]) == 0
        return
    source = verb.source
    if source.startswith("torchvision:"):  # which would fetch it
        assert hasattr(torchvision.datasets, source.partition(":")[2])
        source = "SOURCE"
    if source != "digits":
        classes = made_classes(scratch / "classes")
        if source.endswith(".zip"):
            source = str(scratch / "made.zip")
            with zipfile.ZipFile(source, "w") as packed:
                for path in classes.rglob("*.png"):
                    packed.write(path, path.relative_to(scratch))
        else:
            assert source in ("PHOTOS", "SOURCE"), f"a source that nobody makes: {source}"
            source = str(classes)
    replaced = {verb.source: source, str(verb.out): str(scratch / "out")}
    arguments = [replaced.get(word, word) for word in arguments]
    assert call("shards", [*arguments, "--processes", "1"]) == 0


def written(arguments: list[str], scratch: Path) -> list[str]:
    """Return the arguments of a verb that writes a file of Python with that file, and an args.yaml, elsewhere."""
    arguments = list(arguments)
    for place, word in enumerate(arguments):
        if word.endswith("args.yaml"):
            arguments[place] = str(scratch / "args.yaml")
            Path(arguments[place]).write_text("model: vit_small_patch16_224\nopt: adamw\n")
    if "--output" in arguments:
        arguments[arguments.index("--output") + 1] = str(scratch / "mine.py")
    elif arguments and arguments[0] not in ("list", "bash", "zsh", "fish"):
        arguments += ["--output", str(scratch / "mine.py")]
    return arguments


def done(name: str, arguments: list[str], scratch: Path) -> None:
    """Do a verb that looks at a recipe and its data, on data that is made."""
    verb, others = parsed(name, arguments)
    request = verb.request(others)
    if request.data:
        classes = request.recipe.data.classes
        if name == "preview":
            splits = dict.fromkeys(("train", "val", "test"), 4)
            made = make_dataset(scratch / "data", classes=classes, size=32, samples=splits).folder
        else:
            made = made_index(scratch / "data", request.recipe)
        arguments[arguments.index("--data") + 1] = str(made)
    if "--output" in arguments:
        arguments[arguments.index("--output") + 1] = str(scratch / "made.png")
    if name == "plan":  # of a network that is as wide, and quickly passed through
        arguments += ["--model.depth", "1", "--model.img-size", "32"]
    assert call(name, arguments) == 0


def made_trained(folder: Path) -> None:
    """Make what a finished run of the small recipe leaves: its recipe, random weights and names of classes."""
    folder.mkdir()
    write_json(folder / "recipe.json", {"recipe": asdict(HERE)})
    tensors = build_model(HERE.model, HERE.data.classes, 0).state_dict()
    for name in ("model.safetensors", "model_ema.safetensors"):
        save_file(tensors, folder / name)
    write_json(folder / "config.json", timm_config(HERE, [str(number) for number in range(HERE.data.classes)], 32))


IN_TUTORIAL: Final = {"runs/flowers": "RUN", "flowers": "SOURCE", "flowers_timm": "OUT", "flowers_onnx": "OUT"}


def of_trained(name: str, arguments: list[str], scratch: Path) -> None:
    """Do a verb that works on a trained model, on one that is made; judge it for one that is published."""
    arguments = [IN_TUTORIAL.get(word, word) for word in arguments]
    verb, others = parsed(name, arguments)
    if verb.recipe != "RUN":
        _, request = verb.asked(others)
        classes = request.recipe.data.classes
        whole = replace(
            request.recipe, batch=classes, model=replace(request.recipe.model, weights="", pretrained=False)
        )
        resolve(replace(with_files(replace(request, recipe=whole), scratch), data=""), PREDICTING)
        return
    made = {word: str(scratch / word) for word in ("RUN", "SOURCE", "PHOTOS", "OUT", "answers.csv", "photo.jpg")}
    made_trained(scratch / "RUN")
    make_dataset(scratch / "SOURCE", classes=HERE.data.classes, size=24, samples={"train": 12, "test": 9})
    made_classes(scratch / "PHOTOS")
    Image.new("RGB", (9, 9)).save(scratch / "photo.jpg")
    Image.new("RGB", (9, 9)).save(scratch / "PHOTOS" / "0.png")
    made["PHOTOS/*.png"] = f"{scratch / 'PHOTOS'}/*.png"
    if "--push" in arguments:  # to a hub that is not here
        place = arguments.index("--push")
        del arguments[place : place + 2]
    if name == "export":
        arguments += ["--data", "SOURCE"]
    assert call(name, [made.get(word, word) for word in arguments]) == 0


def script_file(script: str, scratch: Path) -> Path:
    """Return the file of a script: of the repository, or the one that the tutorial has one write."""
    if script != "mine.py":
        return ROOT / script
    (printed,) = blocks(ROOT / "docs" / "tutorial.md", "python")
    (scratch / script).write_text(printed)
    return scratch / script


def vitrail(arguments: list[str], scratch: Path) -> None:
    """Do a verb, or judge it where it takes long."""
    if "mine.py" in arguments and "--output" not in arguments[: arguments.index("mine.py")]:
        arguments = [str(script_file(word, scratch)) if word == "mine.py" else word for word in arguments]
    name, *rest = arguments
    if name == "--help" or "--help" in rest:
        assert name == "--help" or name in VERBS
    elif name == "shards":
        shards(rest, scratch)
    elif name == "models":
        assert call(name, rest) == 0
    elif name in ("recipes", "completion"):
        assert call(name, written(rest, scratch)) == 0
    elif name == "import-timm":
        assert call(name, written(rest, scratch)) == 0
        (made,) = scratch.glob("*.py")
        load_recipe(str(made))
    elif name == "report":
        verb, others = parsed(name, rest)
        assert not others
        for run in verb.runs:
            made = RunFolder(scratch / run)
            made.path.mkdir(parents=True)
            made.recipe.write_text('{"recipe": {"name": "deit_small"}}')
        assert call(name, [*(str(scratch / run) for run in verb.runs), "--output", str(scratch / verb.output)]) == 0
    elif name in ("order", "plan", "preview"):
        done(name, rest, scratch)
    elif name in ("eval", "predict", "export"):
        of_trained(name, rest, scratch)
    else:
        verb, others = parsed(name, rest)
        request = verb.request(others)
        need = {"teach": FILLING, "ladder": FILLING, "slurm": FILLING}.get(name, REHEARSAL)
        hosting = Hosting()
        if isinstance(verb, Slurm):
            engine, wrong = engine_named(verb.config)
            processes = verb.nodes * (verb.processes_per_node or max(1, verb.gpus_per_node))
            hosting = Hosting(processes=processes, engine=engine)
            assert not wrong
        if isinstance(verb, MakeDrill) and verb.config:
            engine, wrong = engine_named(verb.config)
            hosting = Hosting(processes=verb.processes or 2, engine=engine)
            assert not wrong
        for number, strategy in enumerate(verb.rungs if isinstance(verb, Ladder) else [None]):
            asked = replace(request, recipe=on_rung(request.recipe, strategy)) if strategy else request
            (scratch / str(number)).mkdir()
            judge(asked, others, need, hosting, scratch / str(number))


def trained(script: str, arguments: list[str], hosting: Hosting, scratch: Path) -> None:
    """Judge the training of a recipe."""
    request = parse(load_recipe(str(script_file(script, scratch))), arguments)
    # the folder of a run is made here, and its disk is not the reader's
    judge(request, arguments, REHEARSAL if request.dry_run else FILLING, hosting, scratch)


def accelerate(arguments: list[str], scratch: Path) -> None:
    """Judge what is launched, on as many processes as the launcher would start."""
    assert arguments[0] == "launch"
    options = launch_command_parser().parse_args(arguments[1:])
    processes, engine = options.num_processes or 1, Hosting().engine
    if options.config_file:
        config = ROOT / options.config_file
        engine = engine_of_config(config)
        processes = options.num_processes or load_config_from_file(str(config)).num_processes
    launched(
        options.training_script,
        options.training_script_args,
        options.module,
        Hosting(processes=processes, engine=engine),
        scratch,
    )


def launched(script: str, arguments: list[str], module: bool, hosting: Hosting, scratch: Path) -> None:
    if module and script == "launch.cli":
        vitrail(arguments, scratch)
    elif module:
        trained(f"{script.replace('.', '/')}.py", arguments, hosting, scratch)
    else:
        trained(script, arguments, hosting, scratch)


def sbatch(arguments: list[str], scratch: Path, engine: str = "ddp_multinode", processes: int = 0) -> None:
    """Judge a job: its script is there, and what it starts can be started."""
    options = dict(word[2:].split("=") for word in arguments if re.fullmatch(r"--[a-z-]+=[^ ]+", word))
    first = next(number for number, word in enumerate(arguments) if not word.startswith("-"))
    script, *rest = arguments[first:]
    assert (ROOT / script).is_file()
    if script == "slurm/shards.sbatch":
        shards(["build", *rest], scratch)
    elif script == "slurm/teach.sbatch":
        vitrail(["teach", *rest], scratch)
    else:
        assert script == "slurm/train.sbatch"
        a_node = processes or int(options.get("gpus-per-node", 1))
        hosting = Hosting(processes=int(options["nodes"]) * a_node, engine=engine_of_config(config_file(engine)))
        module = rest[0] == "-m"
        launched(rest[module], rest[module + 1 :], module, hosting, scratch)


def python(arguments: list[str], scratch: Path) -> None:
    """Judge a script or module: a recipe's request, of others that they are there."""
    script, *rest = arguments
    if script == "-m":
        assert importlib.util.find_spec(rest[0])
    elif script.startswith("recipes/") or script == "mine.py":
        trained(script, rest, Hosting(), scratch)
    else:
        assert (ROOT / script).is_file()


def make(arguments: list[str], scratch: Path) -> None:
    """Look up a word of the Makefile, and the variables that it is given."""
    text = (ROOT / "Makefile").read_text()
    word, *settings = arguments
    assert re.search(rf"^{word}:", text, re.MULTILINE)
    for setting in settings:
        assert re.search(rf"^{setting.partition('=')[0]} [?:]=", text, re.MULTILINE)


def source(arguments: list[str], scratch: Path) -> None:
    """Look up that the environment is where the Makefile makes it."""
    assert arguments == [".venv/bin/activate"]
    assert "VENV := .venv\n" in (ROOT / "Makefile").read_text()


def git(arguments: list[str], scratch: Path) -> None:
    """Look up that the file is there."""
    assert arguments[0] == "diff"
    assert (ROOT / arguments[1]).is_file()


def tensorboard(arguments: list[str], scratch: Path) -> None:
    """Look up the one option that is used."""
    assert arguments[0] == "--logdir"


RULES: Final[Mapping[str, Callable[[list[str], Path], None]]] = {
    "accelerate": accelerate,
    "git": git,
    "make": make,
    "python": python,
    "sbatch": sbatch,
    "source": source,
    "tensorboard": tensorboard,
    "vitrail": vitrail,
}


def starts_processes(said: Said) -> bool:
    """Return whether the test of a command starts processes: those that read a source."""
    return any(word in said.command for word in ("shards build", "shards index", "shards.sbatch"))


@pytest.mark.parametrize(
    "said",
    [pytest.param(said, marks=pytest.mark.dist if starts_processes(said) else ()) for said in all_said()],
    ids=lambda said: f"{said.where}: {said.command}"[:100],
)
def test_a_command_does_what_it_says_or_would_be_started(said: Said, tmp_path: Path) -> None:
    words = shlex.split(said.command)
    settings = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    program, *arguments = words
    assert program in RULES, f"{said.where}: no rule says how to judge `{said.command}`"
    if settings:
        assert program == "sbatch"
        assert settings.keys() <= {"ENGINE", "PROCESSES_PER_NODE"}
        sbatch(arguments, tmp_path, settings.get("ENGINE", "ddp_multinode"), int(settings.get("PROCESSES_PER_NODE", 0)))
    else:
        RULES[program](arguments, tmp_path)


def test_the_page_of_the_reproduction_has_the_commands_that_it_runs() -> None:
    rows = [row for table in TABLES for row in table.rows if isinstance(row, Row)]
    printed = "".join(blocks(ROOT / "docs" / "reproduction.md", "")).splitlines()
    assert printed == [f"{row.name}: recipes/{row.recipe}.py {row.flags}" for row in rows]


def test_a_command_that_no_rule_covers_fails(tmp_path: Path) -> None:
    assert not {"curl", "pip", "bash"} & RULES.keys()
    with pytest.raises(SystemExit):
        vitrail(["order", "deit_digits", "--epoch", "first"], tmp_path)
    with pytest.raises(BadRequest, match=r"did you mean --optim\.lr"):
        python(["recipes/deit_digits.py", "--optim.lrr", "1"], tmp_path)
    with pytest.raises(AssertionError):
        make(["coffee"], tmp_path)


def test_a_recipe_of_ones_own_is_one_as_it_is_printed(tmp_path: Path) -> None:
    printed = [block for page in PAGES for block in blocks(page, "python") if "RECIPE =" in block]
    assert printed
    for block in printed:
        (tmp_path / "mine.py").write_text(block)
        assert load_recipe(str(tmp_path / "mine.py")).name == "mine"


OTHERS: Final = {  # options of other programs: accelerate launch, sbatch, scancel, srun, timm, docker, deit
    *("--config_file", "--machine_rank", "--num_machines", "--num_processes", "--main_process_ip"),
    *("--main_process_port", "--quiet", "--signal", "--batch", "--requeue", "--nodes", "--gpus-per-node", "--time"),
    *("--array", "--cpus-per-gpu", "--cpus-per-task", "--gpus-per-task", "--logdir", "--distillation-alpha", "--help"),
    *("--nproc-per-node", "--num_cpu_threads_per_process"),
    *("--mixed_precision", "--gradient_accumulation_steps", "--dynamo_backend", "--fsdp_offload_params"),
    "--fsdp_activation_checkpointing",
    *("--bce-loss", "--color-jitter", "--no-repeated-aug", "--repeated-aug", "--src", "--unscale-lr"),
}  # fmt: skip


def options_of_verbs() -> set[str]:
    """Return the flags that verbs have beside a recipe's."""
    found = set()
    for name in VERBS:
        verb = verb_named(name)
        for kind in [getattr(part, "__origin__", part) for part in get_args(verb)] or [verb]:
            found |= {f"--{flag(item.name)}" for item in fields(kind)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_is_one(page: Path) -> None:
    groups = {f"--{name.partition('.')[0]}" for name in FIELDS}
    off = {
        f"--{flag(name)}".replace(".", ".no-", 1) for name, field in FIELDS.items() if isinstance(field.default, bool)
    }
    known = {*(f"--{flag(name)}" for name in FIELDS), *groups, *off, *OWN_FLAGS, *options_of_verbs(), *OTHERS}
    if page.name == "from-timm.md":
        known |= {*spellings("deit"), *spellings("timm")}
    scripts = "\n".join(path.read_text() for path in (ROOT / "tests" / "bench").glob("*.py"))
    for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", page.read_text()):
        assert option in known or f'"{option}"' in scripts, f"{page.name}: {option}"
        assert option not in RENAMED


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_and_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]*)[^)]*\)", text):
        assert not target or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:pipeline|shards|launch|recipes|tests|slurm|docs)/[\w/.]*\w)`", text):
        assert (ROOT / name).exists() or (ROOT / name).with_suffix(".yaml").exists(), name


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "bench").glob("*.py")), ids=lambda script: script.name)
def test_a_script_finds_what_it_takes_from_the_tests(script: Path) -> None:
    before, takes, _ = script.read_text().partition("\nfrom tests")
    assert not takes or "sys.path.insert(0, str(Path(__file__).parents[2]))" in before
