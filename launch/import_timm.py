"""`vitrail import-timm`: a command line of timm or DeiT, or an args.yaml, becomes a recipe file.

The recipe is one of ours with what differs.  What their flags leave open stays as that recipe has it; what a recipe
cannot say is listed with its reason.  Their flags are in `launch/timm_flags.py`.
"""

import ast
import difflib
import math
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import timm
import tyro
import yaml
from timm.optim import get_optimizer_info

from launch.recipe_files import load_recipe, recipe_names
from launch.timm_flags import HOSTING, SCRIPT, Flag, Program, default, flags_of, read, spellings
from launch.verb import Verb
from pipeline.config import FIELDS, IMAGENET_MEAN, IMAGENET_STD, Augment, Optim, Recipe
from pipeline.fields import flatten
from pipeline.rules import recipe_problems
from pipeline.trackers import TENSORBOARD
from pipeline.update.optimizer import OURS, optimizer_problems
from shards.errors import BadRequest, Problem, harmless

# fields that none of their flags decides, unless one does: they stay as the recipe has them that ours is made from
OPEN: Final = re.compile(r"name|precision|micro_batch|distill\.fusion|(eval|checkpoint|compute|spike|log)\..*")
STARTED_BY: Final[Mapping[str, Program]] = {
    "main.py": "deit",
    "run_with_submitit.py": "deit",
    "train.py": "timm",
    "distributed_train.sh": "timm",
}
PROCESSES: Final = re.compile(r"--(?:nproc[_-]per[_-]node|num[_-]processes)[= ](\d+)")
NODES: Final = re.compile(r"--nnodes[= ](\d+)")
PUBLISHED: Final = "https://dl.fbaipublicfiles.com/deit/"  # whose weights timm has too
LAYER_SCALED: Final = re.compile(r"deit_(\w+)_patch(\d+)_LS")  # models_v2.py
DATA_SETS: Final = {  # classes, training images
    "IMNET": (1000, 1_281_167),
    "CIFAR": (100, 50_000),
    "INAT": (8142, 437_513),
    "INAT19": (1010, 265_240),
    "torch/cifar10": (10, 50_000),
    "torch/cifar100": (100, 50_000),
    "torch/imagenet": (1000, 1_281_167),
}
IMAGENET_IMAGES: Final = 1_281_167
POLICIES: Final = {"original": "auto", "v0": "auto_v0", "3a": "three"}
OPTIMIZERS: Final = {  # by their name: ours, and whether its momentum is Nesterov's
    "sgd": ("sgd", True),
    "nesterov": ("sgd", True),
    "momentum": ("sgd", False),
    "fusedsgd": ("sgd", True),
    "fusedmomentum": ("sgd", False),
    "fusedadam": ("adam", False),
    "fusedadamw": ("adamw", False),
    "fusedlamb": ("lamb", False),
}
ADAPTIVE_EPS: Final = {"lamb": 1e-6}  # timm's default where --opt-eps says none; else 1e-8


@dataclass(frozen=True, kw_only=True)
class ImportTimm(Verb):
    """Write a recipe that trains as a command line of timm's train.py or DeiT's main.py does.

    The file is one of our recipes with what differs. What a recipe cannot say is listed, there too, with its reason.

    Example: vitrail import-timm "main.py --model deit_tiny_patch16_224 --batch-size 256" --gpus 4
    """

    arguments: tyro.conf.Positional[str]
    """Command line in quotes, with its script (main.py, run_with_submitit.py, train.py, ...); or an args.yaml"""
    gpus: int = 0  # processes that it runs on, of all nodes; 0: as its launcher says, else 1
    output: Path | None = None  # file to write; MODEL.py here, if none is named

    def __call__(self) -> int:
        """Write the recipe, and say what is in it."""
        theirs = understood(self.arguments, self.gpus)
        path = self.output or Path(re.sub(r"\W", "_", theirs["model"]) + ".py")
        found = []
        if path.suffix != ".py":
            found.append(Problem("output", f"--output {path}: a recipe is a file of Python; name a .py."))
        if path.exists():
            found.append(Problem("output", f"{path} is there already; name another with --output, or remove it."))
        recipe = imported(theirs, path.stem, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source(recipe), encoding="utf-8")
        print(
            harmless(
                "\n".join([str(path), *summary(recipe), f"Run it: accelerate launch {path} --data DIR --output OUT"])
            )
        )
        return 0


VERB: Final = ImportTimm


# ---- what they say ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theirs:
    """What is asked of a program of theirs."""

    program: Program
    said: Mapping[str, Any]  # values by flag, as they were said
    processes: int
    text: str  # as it was written
    launcher: str = ""  # what stands before the program

    def __getitem__(self, name: str) -> Any:
        """Return the value of a flag: as it was said, else the program's default."""
        return self.said.get(name, default(flags_of(self.program)[name], self.program))

    def has(self, name: str) -> bool:
        """Return whether the program has a flag."""
        return name in flags_of(self.program)

    def written(self, *names: str) -> str:
        """Return how flags were said, with those that are at their default marked."""
        words = []
        for name in (name for name in names if self.has(name)):
            given = "" if name in self.said else f"{SCRIPT[self.program]}'s default: "
            words.append(f"{given}{spelled(name, self[name])}")
        return ", ".join(words)


def spelled(name: str, value: Any) -> str:
    """Return how a flag is written with a value."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"no --{name}"
    if value in (None, ""):
        return f"no --{name}"
    return " ".join([f"--{name}", *map(str, value if isinstance(value, list) else [value])])


def understood(text: str, processes: int) -> Theirs:
    """Return what a command line, or the file that it names, asks of which program.  Raises BadRequest."""
    if processes < 0:
        raise BadRequest.of("gpus", f"--gpus {processes}: a run has one process at least; 0 is as the launcher says.")
    if re.search(r"\.ya?ml$", text.strip()):
        return of_file(Path(text.strip()), processes)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadRequest.of("arguments", f"{text}: {error}; copy the whole command.") from error
    scripts = [place for place, word in enumerate(words) if word.rpartition("/")[2] in STARTED_BY]
    if not scripts:
        names = ", ".join(STARTED_BY)
        raise BadRequest.of("arguments", f"whose command is this? Begin it with one of {names}, or name an args.yaml.")
    script = words[scripts[0]].rpartition("/")[2]
    program, launcher, rest = STARTED_BY[script], shlex.join(words[: scripts[0]]), words[scripts[0] + 1 :]
    started = 1
    if script == "distributed_train.sh" and rest and rest[0].isdigit():
        started = int(rest.pop(0))
    elif found := PROCESSES.search(launcher):
        started = int(found[1])
    if found := NODES.search(launcher):
        started *= int(found[1])
    config: dict[str, Any] = {}
    if program == "timm":
        rest, config = with_config(rest)
    said, others = read(program, rest)
    refuse_unknown(program, others)
    theirs = Theirs(program, {**config, **said}, processes or started, text, launcher)
    if script == "run_with_submitit.py" and not processes:
        theirs = replace(theirs, processes=theirs["ngpus"] * theirs["nodes"])
    return theirs


def with_config(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return words without --config FILE, and what that file says."""
    rest, config = [], {}
    left = iter(words)
    for word in left:
        name, _, value = word.partition("=")
        if name in ("-c", "--config"):
            config = of_yaml(Path(value or next(left, "")), "timm")
        else:
            rest.append(word)
    return rest, config


def of_file(path: Path, processes: int) -> Theirs:
    """Return what a file of arguments asks for: timm's, or DeiT's where it has keys of main.py alone."""
    keys = {key.replace("_", "-") for key in loaded(path)}
    program: Program = "deit" if keys & {"data-path", "repeated-aug", "unscale-lr", "ThreeAugment"} else "timm"
    return Theirs(program, of_yaml(path, program), processes or 1, str(path))


def loaded(path: Path) -> dict[str, Any]:
    """Return the values of a file of YAML by key.  Raises BadRequest if it holds no such thing."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRequest.of("arguments", f"{path}: cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BadRequest.of("arguments", f"{path}: is no list of `flag: value`, as timm writes in args.yaml.")
    return values


def of_yaml(path: Path, program: Program) -> dict[str, Any]:
    """Return what differs from a program's defaults in a file of its arguments."""
    known = {name.replace("-", "_"): flag for name, flag in flags_of(program).items()}
    known |= {other.strip("-").replace("-", "_"): flag for flag in known.copy().values() for other in flag.others}
    said, unknown, found = {}, [], []
    for key, value in loaded(path).items():
        if key == "config":
            continue
        flag = known.get(key)
        if flag is None:
            unknown.append(f"--{key}")
        elif not fits(value, flag):
            found.append(Problem("arguments", f"{path}: {key}: {value!r} is no value of --{flag.name} ({flag.kind})."))
        elif value not in (default(flag, program), {}, []):
            said[flag.name] = value
    if found:
        raise BadRequest(found)
    refuse_unknown(program, unknown)
    return said


def fits(value: Any, flag: Flag) -> bool:
    """Return whether a value out of a file is of a flag's kind."""
    if value is None:
        return True
    one = {"int": int, "float": int | float, "text": str | int | float, "switch": bool}
    if flag.kind in one:
        return isinstance(value, one[flag.kind]) and isinstance(value, bool) == (flag.kind == "switch")
    return isinstance(value, list | dict) and (
        flag.kind == "texts" or all(isinstance(each, int | float) for each in value)
    )


def refuse_unknown(program: Program, words: Sequence[str]) -> None:
    """Raise BadRequest for words that are no flags of a program, with the nearest that is one."""
    known = list(spellings(program))
    found = []
    for word in [word for word in words if word.startswith("-")] or words:  # the others are values of these
        name = word.partition("=")[0]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if name.startswith("-") else []
        other: Program = "timm" if program == "deit" else "deit"
        if name in spellings(other):
            says = f"{name} is a flag of {SCRIPT[other]}, not of {SCRIPT[program]}."
        else:
            says = f"{word} is known to neither timm nor DeiT" + (f"; did you mean {near[0]}?" if near else ".")
        found.append(Problem("arguments", says))
    if found:
        raise BadRequest(found)


# ---- what it is here -------------------------------------------------------------------------------------------------


@dataclass
class Translation:
    """The fields that their flags decide, each with the words that decide it; and what has no counterpart."""

    theirs: Theirs
    fields: dict[str, Any] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)  # reason by flag as it was written

    def take(self, name: str, value: Any, *flags: str, words: str = "") -> None:
        """Decide a field."""
        self.fields[name] = list(value) if isinstance(value, tuple) else value
        self.words[name] = words or self.theirs.written(*flags)

    def leave(self, flag: str, why: str) -> None:
        """Say that the value of a flag has no counterpart."""
        self.left[self.theirs.written(flag)] = why


def translated(theirs: Theirs) -> Translation:
    """Return what their flags decide of a recipe."""
    to = Translation(theirs)
    if "-" in theirs.launcher or "=" in theirs.launcher:
        to.left[theirs.launcher] = f"{HOSTING}: accelerate launch --num_processes {theirs.processes}, or fewer"
    for name, flag in flags_of(theirs.program).items():
        if flag.why and name in theirs.said:
            to.leave(name, f"as here: {flag.why}" if theirs[name] == flag.same else flag.why)
    for part in (_model, _data, _batch, _optimizer, _schedule, _augmentation, _mixing, _average, _evaluation, _running):
        part(theirs, to)
    if theirs.program == "deit":
        _distillation(theirs, to)
    return to


def _model(theirs: Theirs, to: Translation) -> None:
    said = theirs["model"]
    name, scaled = said, LAYER_SCALED.fullmatch(said) if theirs.program == "deit" else None
    if scaled:
        name = f"deit3_{scaled[1]}_patch{scaled[2]}_224"
    elif theirs.program == "deit":
        name = said.replace("_patch16_384", "_patch16_224")  # of another size: --input-size says it
    to.take("model.name", name, "model")
    to.take("model.layer_scale", 1e-4 if scaled else None, words="models_v2.py" if scaled else f"--model {said}")
    rule = "uniform" if scaled else "linear"
    to.take("model.drop_path_rule", rule, words="models_v2.py" if scaled else f"--model {said}")
    config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if theirs.program == "deit":
        to.take("model.img_size", theirs["input-size"], "input-size")
        weights = theirs["finetune"]
        if weights.startswith(PUBLISHED):
            to.take("model.pretrained", True, words=f"--finetune {weights}, which timm has too")
        elif "://" in weights:
            to.leave("finetune", "fetch the file, and name it when it is run: --model.weights FILE")
        else:
            to.take("model.weights", weights, "finetune")
        train = theirs["train-mode"]
        to.take("model.drop_path", theirs["drop-path"] if train else 0.0, *(["drop-path"] if train else ["train-mode"]))
        to.take("model.dropout", theirs["drop"] if train else 0.0, *(["drop"] if train else ["train-mode"]))
        to.take("finetune.strategy", "attention" if theirs["attn-only"] else "full", "attn-only")
        return
    size, size_by = (config.input_size[-1] if config else 224), f"--model {said}"
    if theirs["input-size"] or theirs["img-size"]:
        by = "img-size" if theirs["img-size"] else "input-size"
        size, size_by = theirs["img-size"] or theirs["input-size"][-1], theirs.written(by)
    to.take("model.img_size", size, words=size_by)
    for part, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        own = theirs[part] or (getattr(config, part) if config else None)
        value = tuple(own) * (3 if own and len(own) == 1 else 1) if own else None
        to.take(f"model.{part}", None if value == usual else value, *([part] if theirs[part] else ["model"]))
    to.take("model.pretrained", theirs["pretrained"], "pretrained")
    weights = "pretrained-path" if theirs["pretrained-path"] else "initial-checkpoint"
    to.take("model.weights", theirs[weights] or "", weights)
    path = "drop-connect" if theirs["drop-connect"] and not theirs["drop-path"] else "drop-path"
    to.take("model.drop_path", theirs[path] or 0.0, path)
    to.take("model.dropout", theirs["drop"], "drop")
    if theirs["layer-decay"]:
        to.take("finetune.rates", "geometric", "layer-decay")
        to.take("finetune.decay", theirs["layer-decay"], "layer-decay")


def _data(theirs: Theirs, to: Translation) -> None:
    deit = theirs.program == "deit"
    by, number = ("data-set", "nb-classes") if deit else ("dataset", "num-classes")
    classes, images = DATA_SETS.get(theirs[by], (None, None))
    if classes is None and not deit and timm.is_model(theirs["model"]):
        config: Any = timm.get_pretrained_cfg(theirs["model"])
        classes = config.num_classes if config else None
    if deit and images is None:
        known = "IMNET, CIFAR, INAT, INAT19"
        raise BadRequest.of("arguments", f"--data-set {theirs[by]}: main.py knows {known}.")
    if images is None:
        images = theirs["train-num-samples"] or IMAGENET_IMAGES
        if not theirs["train-num-samples"] and (theirs[by] or theirs[number] not in (None, 1000)):
            to.left["images of the data"] = "not said: ImageNet-1k's number stands there, for a plan without data alone"
    to.take("data.classes", theirs[number] or classes or 1000, *([number] if theirs[number] else [by]))
    to.take("data.images", images, by)
    repeats = "repeated-aug" if deit else "aug-repeats"
    times = 3 if deit and theirs[repeats] else 1 if deit else int(theirs[repeats] or 1)
    if times > 1 and theirs.processes == 1:
        to.take(
            "data.repeats", 1, words=f"{theirs.written(repeats)}, which {SCRIPT[theirs.program]} ignores on one process"
        )
    else:
        to.take("data.repeats", times, repeats)


def _batch(theirs: Theirs, to: Translation) -> None:
    parts = theirs.processes * (theirs["grad-accum-steps"] if theirs.has("grad-accum-steps") else 1)
    words = f"{theirs.written('batch-size')} on {theirs.processes} process(es)"
    if parts > theirs.processes:
        words += f", {theirs.written('grad-accum-steps')}"
    to.take("batch", theirs["batch-size"] * parts, words=words)
    to.take("virtual_ranks", parts, words=words)  # each mixes its images by itself
    to.take("epochs", theirs["epochs"], "epochs")
    to.take("seed", theirs["seed"], "seed")


def written_number(value: float | Sequence[float]) -> str:
    """Return a number, or several with commas, as an argument of an optimizer is written."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, Sequence) else f"{value:g}"


def further_arguments(theirs: Theirs) -> dict[str, str]:
    """Return an optimizer's further arguments as a recipe writes them: out of key=value, or of the dict of a file."""
    said = (theirs["opt-kwargs"] or []) if theirs.has("opt-kwargs") else []
    pairs = said.items() if isinstance(said, dict) else (pair.split("=", 1) for pair in said if "=" in pair)
    return {key: re.sub(r"[()\[\]\s]", "", str(value)) for key, value in pairs}


def _optimizer(theirs: Theirs, to: Translation) -> None:
    said = theirs["opt"].lower()
    name, nesterov = OPTIMIZERS.get(said, (said, False))
    if unfit := list(optimizer_problems(Optim(lr=1.0, name=name))):
        to.leave("opt", f"{unfit[0]} adamw stands in its place, for which the rate is not meant")
        name = "adamw"
    to.take("optim.name", name, "opt")
    to.take("optim.weight_decay", theirs["weight-decay"], "weight-decay")
    if name == "sgd":
        to.take("optim.momentum", theirs["momentum"], "momentum")
        to.take("optim.nesterov", nesterov and theirs["momentum"] > 0, "opt")
    elif name in OURS:
        to.take("optim.eps", theirs["opt-eps"] or ADAPTIVE_EPS.get(name, 1e-8), "opt-eps")
        betas = theirs["opt-betas"]
        to.take("optim.betas", tuple(betas) if betas else (0.9, 0.999), "opt-betas")
    arguments: dict[str, str] = {}
    by = ["opt-kwargs"]
    if name not in OURS:
        has = get_optimizer_info(name)
        given = {
            "eps": theirs["opt-eps"] if has.has_eps else None,
            "betas": theirs["opt-betas"] if has.has_betas else None,
        }
        given["momentum"] = theirs["momentum"] if has.has_momentum else None
        arguments = {key: written_number(value) for key, value in given.items() if value is not None}
        by += ["opt-eps", "opt-betas", "momentum"]
    for key, text in further_arguments(theirs).items():
        if unfit := list(optimizer_problems(Optim(lr=1.0, name=name, args=(f"{key}={text}",)))):
            to.leave("opt-kwargs", str(unfit[0]))
        else:
            arguments[key] = text
    to.take("optim.args", tuple(f"{key}={text}" for key, text in arguments.items()), *by)
    clip, mode = theirs["clip-grad"] or 0.0, theirs["clip-mode"] if theirs.has("clip-mode") else "norm"
    if clip and mode != "norm":
        to.leave("clip-mode", "gradients are clipped by their norm alone; they are not clipped here")
    to.take("optim.clip", clip if mode == "norm" else 0.0, "clip-grad")


def _schedule(theirs: Theirs, to: Translation) -> None:
    if theirs.program == "deit":
        to.take("optim.lr", theirs["lr"], "lr")
        to.take("optim.lr_batch", 0 if theirs["unscale-lr"] else 512, "unscale-lr")
    elif theirs["lr"]:
        to.take("optim.lr", theirs["lr"], "lr")
        to.take("optim.lr_batch", 0, "lr")
    else:
        base, size, scale = theirs["lr-base"], theirs["lr-base-size"], theirs["lr-base-scale"]
        by = ("lr-base", "lr-base-size", "lr-base-scale")
        if (scale or ("sqrt" if re.search("ada|lamb", theirs["opt"].lower()) else "linear")) == "linear":
            to.take("optim.lr", base, *by)
            to.take("optim.lr_batch", size, *by)
        else:
            batch = to.fields["batch"]
            to.take(
                "optim.lr",
                base * math.sqrt(batch / size),
                words=f"{theirs.written(*by)}, by the root of {batch} / {size}",
            )
            to.take("optim.lr_batch", 0, *by)
    if theirs["sched"] != "cosine":
        to.leave("sched", "a recipe has three cosines and wsd; timm's cosine stands in its place")
    to.take("optim.schedule", "timm", "sched")
    for ours in ("warmup_epochs", "warmup_lr", "min_lr"):
        name = ours.replace("_", "-")
        to.take(f"optim.{ours}", float(theirs[name]), name)
    if theirs.has("warmup-prefix") and theirs["warmup-prefix"]:  # the cosine begins behind the warm-up, which is added
        to.take("optim.schedule", "big_vision", "warmup-prefix")
        to.take("epochs", theirs["epochs"] + theirs["warmup-epochs"], "epochs", "warmup-epochs", "warmup-prefix")


def _augmentation(theirs: Theirs, to: Translation) -> None:
    deit = theirs.program == "deit"
    to.take("augment.erase", theirs["reprob"], "reprob")
    policy = theirs["aa"]
    if deit and theirs["ThreeAugment"]:  # its own pipeline: main.py's new_data_aug_generator
        to.take("augment.policy", "three", "ThreeAugment")
        to.take("augment.jitter", theirs["color-jitter"] or 0.0, "color-jitter")
        to.take("augment.erase", 0.0, words="--ThreeAugment, which erases nothing")
        to.take("augment.crop", "simple" if theirs["src"] else "resized", "src")
        for name in ("aa", "reprob"):
            if name in theirs.said and theirs[name] not in (0.0, "none", "None"):
                to.leave(name, "main.py ignores it beside --ThreeAugment")
    else:
        _policy(policy, theirs, to)
        jitter = theirs["color-jitter"] or 0.0
        if policy and policy not in ("none", "None"):
            if "color-jitter" in theirs.said and jitter and policy != "3a":
                to.leave("color-jitter", "timm leaves it out beside --aa")
            jitter = jitter if policy == "3a" else 0.0
        to.take("augment.jitter", jitter, "color-jitter")
        if deit and theirs["src"]:
            to.leave("src", "main.py takes it with --ThreeAugment alone")
    small = deit and theirs["input-size"] <= 32
    if small:
        to.take("augment.crop", "padded", words=f"{theirs.written('input-size')}: main.py crops with 4 pixels around")
    elif "augment.crop" not in to.fields:
        to.take("augment.crop", "resized", words="timm's crop")
    interpolation = theirs["train-interpolation"]
    if interpolation != "bicubic":
        to.leave("train-interpolation", "views are resized by bicubic interpolation (bilinear is of four pixels here)")
    to.take("augment.interpolation", "bicubic", "train-interpolation")
    if deit:
        return
    mode = theirs["train-crop-mode"]
    if mode not in (None, "rrc"):
        to.leave("train-crop-mode", "the random resized crop, rrc, stands in its place")
    for ours in ("scale", "ratio"):
        to.take(f"augment.{ours}", tuple(theirs[ours]), ours)
    to.take("augment.flip", theirs["hflip"], "hflip")
    if theirs["no-aug"]:
        for ours, value in asdict(Augment(crop="whole", flip=0.0)).items():
            to.take(f"augment.{ours}", value, "no-aug")
        to.leave("no-aug", "the whole image is resized to a square, where timm crops its middle")


def _policy(said: str | None, theirs: Theirs, to: Translation) -> None:
    """Decide what --aa does."""
    numbers = {"n": 2.0, "m": 9.0, "mstd": 0.0, "p": 0.5, "inc": 0.0}
    if not said or said in ("none", "None"):
        to.take("augment.policy", "rand", "aa")
        to.take("augment.rand_ops", 0, "aa")
    elif said in POLICIES:
        to.take("augment.policy", POLICIES[said], "aa")
        to.take("augment.rand_ops", 0, "aa")
    elif said.split("-")[0] == "rand":
        given = {}
        for part in said.split("-")[1:]:
            found = re.fullmatch(r"([a-z]+)([\d.]+)", part)
            if not found or found[1] not in numbers:
                to.leave("aa", f"`{part}` has no counterpart")
            else:
                given[found[1]] = float(found[2])
        numbers |= given
        if not numbers["inc"]:
            to.leave("aa", "every operation grows with its magnitude here, as with -inc1")
        if numbers["mstd"] > 100:
            to.leave("aa", "the magnitude is normally distributed, not uniformly; it varies by 0.5")
            numbers["mstd"] = 0.5
        to.take("augment.policy", "rand", "aa")
        for ours, name in (("rand_ops", "n"), ("rand_magnitude", "m"), ("rand_std", "mstd"), ("rand_prob", "p")):
            to.take(f"augment.{ours}", int(numbers[name]) if name == "n" else numbers[name], "aa")
    else:
        to.leave("aa", "a recipe has RandAugment, AutoAugment (original, v0) and 3-Augment; none stands in its place")
        to.take("augment.rand_ops", 0, "aa")


def _mixing(theirs: Theirs, to: Translation) -> None:
    mixed = bool(theirs["mixup"] and theirs["cutmix"])
    to.take("mix.mixup_alpha", theirs["mixup"], "mixup")
    to.take("mix.cutmix_alpha", theirs["cutmix"], "cutmix")
    to.take("mix.prob", theirs["mixup-prob"], "mixup-prob")
    to.take("mix.switch_prob", theirs["mixup-switch-prob"] if mixed else 0.5, "mixup-switch-prob")
    to.take("mix.loss", "bce" if theirs["bce-loss"] else "ce", "bce-loss")
    smoothing = theirs["smoothing"]
    if theirs["bce-loss"] and smoothing:
        to.leave("smoothing", "with --mix.loss bce labels are taken as they are")
        smoothing = 0.0
    if theirs.program == "timm" and theirs["bce-loss"] and theirs["bce-target-thresh"] is None:
        to.leave("bce-loss", "every class in the mixture is one, as in DeiT III; timm's targets stay between 0 and 1")
    to.take("mix.smoothing", smoothing, "smoothing")


def _average(theirs: Theirs, to: Translation) -> None:
    on = theirs["model-ema"]
    to.take("ema.decay", theirs["model-ema-decay"] if on else 0.0, *(["model-ema-decay"] if on else ["model-ema"]))
    if on:
        warmup = theirs.has("model-ema-warmup") and theirs["model-ema-warmup"]
        to.take("ema.warmup", warmup, "model-ema-warmup", words="" if theirs.program == "timm" else "main.py has none")


def _evaluation(theirs: Theirs, to: Translation) -> None:
    if theirs.program == "deit":
        to.take("eval.crop_ratio", theirs["eval-crop-ratio"], "eval-crop-ratio")
        return
    config: Any = timm.get_pretrained_cfg(theirs["model"]) if timm.is_model(theirs["model"]) else None
    ratio = theirs["crop-pct"] or (config.crop_pct if config else 0.875)
    to.take("eval.crop_ratio", ratio, *(["crop-pct"] if theirs["crop-pct"] else ["model"]))
    if theirs["validation-batch-size"]:
        to.take("eval.batch", theirs["validation-batch-size"], "validation-batch-size")
    if "val-interval" in theirs.said:
        to.take("eval.every_epochs", theirs["val-interval"], "val-interval")


def _running(theirs: Theirs, to: Translation) -> None:
    """Decide what changes no result: only what is said, and the precision of timm, which is not mixed unless asked."""
    workers = "num_workers" if theirs.program == "deit" else "workers"
    if workers in theirs.said:
        to.take("data.workers", theirs[workers], workers)
    if theirs.program == "deit":
        return
    if not theirs["amp"]:
        to.take("precision", "fp32", "amp")
    elif theirs["amp-dtype"] == "bfloat16":
        to.take("precision", "bf16", "amp", "amp-dtype")
    else:
        to.leave("amp", "mixed precision is bf16, where the device has it, which needs no scaling of the loss")
        to.take("precision", "auto", "amp")
    for name, ours in (("log-interval", "log.every_steps"), ("checkpoint-hist", "checkpoint.keep"),
                       ("recovery-interval", "checkpoint.every_steps")):  # fmt: skip
        if name in theirs.said:
            to.take(ours, theirs[name], name)
    if theirs["log-wandb"]:
        to.take("log.trackers", f"{TENSORBOARD},wandb", "log-wandb")
    if theirs["grad-checkpointing"]:
        to.take("compute.activation_checkpointing", True, "grad-checkpointing")
    if theirs["torchcompile"]:
        to.take("compute.compile", "on", "torchcompile")


def _distillation(theirs: Theirs, to: Translation) -> None:
    kind, teacher, path = theirs["distillation-type"], theirs["teacher-model"], theirs["teacher-path"]
    if kind == "none":
        return
    if path.startswith(PUBLISHED):
        tagged = {"regnety_160": "regnety_160.deit_in1k"}.get(teacher, teacher)
        to.take("distill.teacher", tagged, "teacher-model", "teacher-path")
    else:
        to.take("distill.teacher", teacher, "teacher-model")
        if "://" in path:
            to.leave("teacher-path", "fetch the file, and name it when it is run: --distill.weights FILE")
        else:
            to.take("distill.weights", path, "teacher-path")
    to.take("distill.loss", kind, "distillation-type")
    to.take("distill.weight", theirs["distillation-alpha"], "distillation-alpha")
    if kind == "soft":
        to.take("distill.tau", theirs["distillation-tau"], "distillation-tau")
        to.take("distill.kl", "code", words="losses.py of DeiT")


# ---- the recipe ------------------------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """A recipe of theirs: one of ours with what differs."""

    base: str  # name of ours
    name: str
    differs: dict[str, Any]  # values by field
    before: dict[str, Any]  # of the base, by field
    recipe: Recipe
    translation: Translation


def imported(theirs: Theirs, name: str, found: Sequence[Problem] = ()) -> Imported:
    """Return their recipe as the nearest of ours with what differs.

    Raises BadRequest with all that is wrong with it, beside what was found before.
    """
    problems = list(found)
    to = translated(theirs)
    model = to.fields["model.name"]
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        says = f"; near: {', '.join(near)}." if near else "; `vitrail models` lists them."
        problems.append(Problem("model.name", f"--model {theirs['model']}: no model of timm is called so{says}"))
    if theirs.program == "deit" and theirs["eval"]:
        problems.append(Problem("arguments", "--eval trains nothing, so that there is no recipe in it; leave it out."))
    decided = {
        field: list(facts.default) if isinstance(facts.default, tuple) else facts.default
        for field, facts in FIELDS.items()
        if not OPEN.fullmatch(field)
    } | to.fields
    if not decided["ema.decay"]:
        del decided["ema.warmup"]  # of no average
    ours = {known: flatten(load_recipe(known)) for known in recipe_names()}

    def distance(known: str) -> tuple[bool, int, bool]:
        values = ours[known]
        other_data = values["data.classes"] != decided["data.classes"]
        return other_data, len(_others(values, decided)), values["model.name"] != model

    base = min(ours, key=distance)
    differs = {field: decided[field] for field in FIELDS if field in _others(ours[base], decided)}
    recipe = with_values(load_recipe(base), {**differs, "name": name})
    problems += [*recipe_problems(recipe), *optimizer_problems(recipe.optim)]
    if problems:
        raise BadRequest(problems)
    return Imported(base, name, differs, ours[base], recipe, to)


def _others(values: Mapping[str, Any], decided: Mapping[str, Any]) -> list[str]:
    """Return the decided fields that have another value."""
    return [name for name in decided if values[name] != decided[name]]


def with_values(value: Any, changed: Mapping[str, Any]) -> Any:
    """Return a recipe, or a group of it, with other values of some fields, by dotted name."""
    groups: dict[str, dict[str, Any]] = {}
    for name, new in changed.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tuple(new) if isinstance(new, list) else new
    own = {
        group: with_values(getattr(value, group), inner) if is_dataclass(getattr(value, group)) else inner[""]
        for group, inner in groups.items()
    }
    return replace(value, **own)


def summary(made: Imported) -> Iterator[str]:
    """Yield what a recipe is, line by line."""
    if not made.differs:
        yield f"{made.base} as it is"
    else:
        yield f"{made.base} with {len(made.differs)} other value(s):"
    for name, value in made.differs.items():
        yield f"  {name} = {value!r}, there {made.before[name]!r}: {made.translation.words.get(name, 'not theirs')}"
    if made.translation.left:
        yield "What is said elsewhere, or not at all:"
    for flag, why in made.translation.left.items():
        yield f"  {flag}: {why}"


def source(made: Imported) -> str:
    """Return the file of a recipe.  What others wrote is in it as literals, and in comments and docstring escaped."""
    base = made.base.upper()
    left = [f"{flag}: {why}" for flag, why in made.translation.left.items()]
    parts = [
        f"{made.name}: {made.base} as another program's command line has it (vitrail import-timm).",
        "",
        *textwrap.wrap(quoted(made.translation.theirs.text), 112, initial_indent="    ", subsequent_indent="    "),
        *(["", "Said elsewhere, or not at all:"] if left else []),
        *(part for line in left for part in textwrap.wrap(f"- {quoted(line)}", 116, subsequent_indent="  ")),
        f"Run:   accelerate launch {quoted(made.name)}.py --data DIR --output OUT",
    ]
    docstring = "\n".join(parts)
    lines = [f'"""{docstring}', '"""', "", "from dataclasses import replace", "", "from pipeline.run import main"]
    lines += [f"from recipes.{made.base} import RECIPE as {base}", "", "RECIPE = replace(", f"    {base},"]
    lines.append(f"    name={literal(made.name)},")
    words = made.translation.words
    for item in fields(Recipe):
        inner = {name: value for name, value in made.differs.items() if name.partition(".")[0] == item.name}
        if item.name in inner:
            lines.append(f"    {item.name}={literal(inner[item.name])},{comment(words.get(item.name))}")
        elif inner:
            lines += [f"    {item.name}=replace(", f"        {base}.{item.name},"]
            lines += [
                f"        {name.partition('.')[2]}={literal(value)},{comment(words.get(name))}"
                for name, value in inner.items()
            ]
            lines.append("    ),")
    lines += [")", "", 'if __name__ == "__main__":', "    main(RECIPE)", ""]
    text = "\n".join(lines)
    ast.parse(text)  # what is written can be read
    return text


def literal(value: Any) -> str:
    """Return a value as Python writes it."""
    written = repr(tuple(value) if isinstance(value, list) else value)
    plain = isinstance(value, str) and not set(value) & set("\"'\\")
    return f'"{value}"' if plain and value.isprintable() else written


def comment(words: str | None) -> str:
    """Return a comment behind a value: one line, whatever is in the words."""
    return f"  # {quoted(words)}" if words else ""


def quoted(text: str) -> str:
    """Return what others wrote for a comment or a docstring: one line that ends neither."""
    return " ".join(harmless(text).split()).replace("\\", "/").replace('"', "'")
