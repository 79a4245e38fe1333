"""What is wrong with a recipe, with its hosting, and with its data: values in, problems out, nothing is built.

What one field may be is derived from `pipeline/fields.py`; the rules here concern several.  What only a model or a
file can tell is found in `pipeline/job.py`.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Final

from pipeline.config import FIELDS, LOCAL_DIR, EngineName, Recipe
from pipeline.fields import Field, flag, flatten, written
from pipeline.trackers import unknown_trackers
from pipeline.update.optimizer import needs_whole_parameters
from shards.dataset import Dataset
from shards.errors import Problem

DRAWS_NOTHING: Final[Mapping[str, object]] = {  # a view is a function of its image alone, and there is one of each
    "augment.crop": "whole",
    "augment.flip": 0.0,
    "augment.policy": "rand",
    "augment.rand_ops": 0,
    "augment.jitter": 0.0,
    "augment.rotate": 0.0,
    "augment.shear": 0.0,
    "augment.erase": 0.0,
    "mix.mixup_alpha": 0.0,
    "mix.cutmix_alpha": 0.0,
    "data.repeats": 1,
    "data.balance": False,
}


def recipe_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with a recipe wherever it is hosted."""
    values = flatten(recipe)
    yield from _name_problems(recipe.name)
    for field in FIELDS.values():
        value = values[field.name]
        if field.range and (complaint := field.range.complaint(value)):
            yield Problem(field.name, f"{written(field.name, value).replace(' ', ' is ', 1)}; it {complaint}.")
        yield from _without_meaning(field, values)
    if min(recipe.virtual_ranks, recipe.batch) > 0 and recipe.batch % recipe.virtual_ranks:
        fitting = [k for k in range(1, recipe.batch + 1) if recipe.batch % k == 0]
        nearest = min(fitting, key=lambda k: abs(k - recipe.virtual_ranks))
        yield Problem(
            "batch",
            f"--batch {recipe.batch} cannot be divided among --virtual-ranks {recipe.virtual_ranks}; "
            f"the nearest number that divides it is {nearest}.",
        )
    model, patch = recipe.model, recipe.model.patch_size
    if patch and patch > 0 and model.img_size % patch:
        yield Problem(
            "model.img_size", f"--model.img-size {model.img_size} is not a multiple of --model.patch-size {patch}."
        )
    if recipe.mix.loss == "bce" and recipe.mix.smoothing:
        yield Problem("mix.smoothing", "--mix.loss bce takes labels as they are: --mix.smoothing 0 goes with it.")
    weights = recipe.mix.class_weights
    if weights and weights != "balanced" and (len(weights) != recipe.data.classes or not any(weights)):
        yield Problem(
            "mix.class_weights",
            f"--mix.class-weights has {len(weights)} weights: one for each of the {recipe.data.classes} classes, not "
            f"all 0, or balanced.",
        )
    if weights == "balanced" and recipe.data.balance:
        yield Problem(
            "mix.class_weights",
            "--mix.class-weights balanced and --data.balance both make up for rare classes: take one of them.",
        )
    if recipe.augment.policy == "rand_tf" and not recipe.augment.rand_ops:
        yield Problem(
            "augment.rand_ops", "--augment.policy rand_tf: how many operations a view, --augment.rand-ops? 0 is none."
        )
    if recipe.optim.warmup_epochs > recipe.epochs > 0:
        yield Problem(
            "optim.warmup_epochs",
            f"--optim.warmup-epochs {recipe.optim.warmup_epochs} is longer than --epochs {recipe.epochs}.",
        )
    yield from _wsd_problems(recipe)
    if set(recipe.ema.more) & {recipe.ema.decay} or len(set(recipe.ema.more)) < len(recipe.ema.more):
        yield Problem(
            "ema.more",
            f"{written('ema.more', recipe.ema.more)}: each average has a decay of its own; --ema.decay is "
            f"{recipe.ema.decay}.",
        )
    if recipe.checkpoint.best != "none" and not (recipe.eval.every_epochs or recipe.eval.every_steps):
        yield Problem(
            "checkpoint.best",
            f"--checkpoint.best {recipe.checkpoint.best} compares evaluations: how often, --eval.every-epochs or "
            f"--eval.every-steps?",
        )
    if recipe.spike.policy == "rollback" and not recipe.checkpoint.every_steps:
        yield Problem(
            "spike.policy",
            "--spike.policy rollback goes back to checkpoints by steps: how many, --checkpoint.every-steps?",
        )
    if 0 < recipe.spike.factor <= 1:
        yield Problem(
            "spike.factor", f"--spike.factor {recipe.spike.factor}: every loss would leap; take more than 1, or 0."
        )
    yield from unknown_trackers(recipe.log.trackers)
    yield from _finetune_problems(recipe)
    yield from _cache_problems(recipe)
    yield from _distill_problems(recipe)


def _wsd_problems(recipe: Recipe) -> Iterator[Problem]:
    optim = recipe.optim
    if optim.schedule != "wsd":
        return
    if not optim.decay_epochs:
        yield Problem(
            "optim.decay_epochs", "--optim.schedule wsd: over how many epochs does the rate fall, --optim.decay-epochs?"
        )
    trained = recipe.epochs - recipe.finetune.head_epochs
    if optim.warmup_epochs + optim.decay_epochs > trained > 0:
        yield Problem(
            "optim.decay_epochs",
            f"--optim.warmup-epochs {optim.warmup_epochs} and --optim.decay-epochs {optim.decay_epochs} together are "
            f"longer than the {trained:g} epochs there are.",
        )


def _name_problems(name: str) -> Iterator[Problem]:
    """Complain of a name that names no folder below runs/."""
    parts = PurePath(name)
    control = any(unicodedata.category(char) == "Cc" for char in name)
    if control or parts.is_absolute() or not parts.parts or ".." in parts.parts:
        yield Problem(
            "name", f"--name {name!r} names no folder below runs/: no `..`, no `/` before it, nothing unseen."
        )


def _without_meaning(field: Field, values: dict[str, object]) -> Iterator[Problem]:
    """Complain of a value that nothing would read."""
    value = values[field.name]
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    if value == default:
        return
    for condition in field.only_with:
        other = values[condition.field]
        if condition.values and other not in condition.values:
            allowed = " or ".join(written(condition.field, choice) for choice in condition.values)
            back = f"take {written(field.name, default)}" if default is not None else "leave it out"
            yield Problem(
                field.name,
                f"{written(field.name, value)} is for {allowed}, not for {other}: {back}.",
            )
            return
        if not condition.values and not other:
            yield Problem(
                field.name, f"{written(field.name, value)} has no meaning without --{flag(condition.field)}: name one."
            )
            return


def _finetune_problems(recipe: Recipe) -> Iterator[Problem]:
    finetune = recipe.finetune
    if not re.fullmatch(r"full|linear|classifier|attention|gradual|partial-[\d./]+", finetune.strategy):
        yield Problem(
            "finetune.strategy",
            f"--finetune.strategy {finetune.strategy!r} is none of full, linear, classifier, partial-K (K blocks; "
            f"1/2: an MLP), attention and gradual.",
        )
    if (finetune.strategy == "gradual") != bool(finetune.head_epochs):
        yield Problem(
            "finetune.head_epochs",
            "--finetune.strategy gradual and --finetune.head-epochs go together: how long is the head trained alone?",
        )
    if finetune.head_epochs > recipe.epochs:
        yield Problem(
            "finetune.head_epochs",
            f"--finetune.head-epochs {finetune.head_epochs} is longer than --epochs {recipe.epochs}.",
        )


def has_frozen_prefix(strategy: str) -> bool:
    """Return whether the first part of a network stays as it is under a strategy of fine-tuning."""
    return strategy.partition("-")[0] in ("linear", "classifier", "partial")


def _cache_problems(recipe: Recipe) -> Iterator[Problem]:
    finetune, values = recipe.finetune, flatten(recipe)
    if not finetune.cache:
        return
    if not has_frozen_prefix(finetune.strategy):
        yield Problem(
            "finetune.cache",
            f"--finetune.cache keeps what the first part of a network gives, which --finetune.strategy "
            f"{finetune.strategy} does not leave as it is. It is for linear, classifier and partial-K.",
        )
    if recipe.distill.teacher:
        yield Problem(
            "finetune.cache",
            f"--finetune.cache: nothing is decoded any more that --distill.teacher {recipe.distill.teacher} could see. "
            f"Take one of them.",
        )
    still = {**DRAWS_NOTHING, **{name: value for name, value in values.items() if name not in DRAWS_NOTHING}}
    if still != values:
        # what nothing would read any more goes back, too: else the next answer would be about that
        still |= {name: field.default for name, field in FIELDS.items() if any(_without_meaning(field, still))}
        taken = [written(name, value) for name, value in still.items() if value != values[name]]
        yield Problem(
            "finetune.cache",
            f"--finetune.cache keeps what one view of each image gives, of which nothing may be drawn. Take "
            f"{' '.join(taken)}",
        )


def _distill_problems(recipe: Recipe) -> Iterator[Problem]:
    distill, classes = recipe.distill, recipe.data.classes
    if distill.teacher.startswith(LOCAL_DIR) and distill.weights:
        yield Problem(
            "distill.weights", f"--distill.weights: those of --distill.teacher {distill.teacher} are that folder's own."
        )
    if distill.top > classes:
        yield Problem("distill.top", f"--distill.top {distill.top} is more than the {classes} classes.")
    if distill.store and distill.loss == "soft" and not distill.top:
        yield Problem(
            "distill.top",
            "--distill.store: say with --distill.top how many classes of a soft output to keep (4 bytes each a view).",
        )
    if distill.store and classes >= 2**16:
        yield Problem(
            "distill.store", f"--distill.store holds outputs of at most {2**16 - 1:,} classes, not {classes:,}."
        )


def hosting_problems(recipe: Recipe, processes: int, engine: EngineName) -> Iterator[Problem]:
    """Yield what is wrong with hosting a recipe on so many processes under an engine."""
    ranks = recipe.virtual_ranks
    if processes < 1:
        yield Problem("processes", f"{processes} processes train nothing; start one at least.")
        return
    if processes > ranks > 0:
        yield Problem(
            "virtual_ranks",
            f"{processes} processes cannot host --virtual-ranks {ranks}: each needs one at least. "
            f"Start at most {ranks} processes.{_more_ranks(recipe.batch, ranks, processes)}",
        )
    if engine == "ddp":
        return
    # the others spread a run's state over processes
    if ranks >= processes and ranks % processes:
        fitting = ", ".join(str(k) for k in range(1, ranks + 1) if ranks % k == 0)
        yield Problem(
            "virtual_ranks",
            f"{processes} processes cannot host --virtual-ranks {ranks} under {engine}, where all pass through the "
            f"model equally often. Start {fitting}, or take DDP, which hosts unequal shares.",
        )
    if needing := needs_whole_parameters(recipe.optim):
        yield Problem(
            needing,
            f"{written(needing, getattr(recipe.optim, needing.removeprefix('optim.')))} needs each parameter "
            f"in one piece, which {engine} takes apart. Take DDP.",
        )
    if recipe.finetune.cache:
        yield Problem(
            "finetune.cache",
            f"--finetune.cache is for one process or DDP, not for {engine}: it computes with weights that are whole.",
        )
    if recipe.compute.compile == "on" and engine == "zero3":
        yield Problem(
            "compute.compile",
            f"--compute.compile on: {engine} fetches weights layer by layer, which leaves pieces to compile. Take "
            f"FSDP2.",
        )


def _more_ranks(batch: int, ranks: int, processes: int) -> str:
    """Return which number of virtual ranks would use more processes, all alike: a divisor of the batch."""
    used = max((count for count in range(1, processes + 1) if batch > 0 and batch % count == 0), default=0)
    another = "That is another run: its views and mixing differ."
    if used == processes:
        return f" Or take --virtual-ranks {used}, which uses them all. {another}"
    none = f" No --virtual-ranks divides --batch {batch} alike among {processes}"
    return f"{none}; --virtual-ranks {used} uses {used} of them. {another}" if used > ranks else f"{none}."


def label_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with the labels of a data set."""
    for index in dataset.splits.values():
        if index.known is None:  # each label is looked at when it arrives
            continue
        highest = int(index.known["label"].max())
        if highest >= len(dataset.classes):
            yield Problem(
                "data", f"{index.dataset}: has label {highest}, but dataset.json names {len(dataset.classes)} classes."
            )


def split_problems(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with looking at the training split of a data set as a recipe does."""
    by_label = ["data.balance"] if recipe.data.balance else []
    by_label += ["mix.class_weights"] if recipe.mix.class_weights == "balanced" else []
    by_label += ["finetune.cache"] if recipe.finetune.cache else []  # reads labels without their images
    if by_label and "train" in dataset.splits and dataset.splits["train"].known is None:
        yield Problem(
            by_label[0],
            f"--{flag(by_label[0])} goes by the labels of all images, and those of {dataset.named} come with the "
            f"shards. Copy the shards here, with their index.",
        )
    if "train" not in dataset.splits:
        yield Problem("data", f"{dataset.named}: no split `train` (it has {', '.join(dataset.splits)}).")
    elif (images := len(dataset.splits["train"])) < recipe.data.subset:
        yield Problem(
            "data.subset",
            f"--data.subset {recipe.data.subset} is more than the {images} training images in {dataset.named}.",
        )


def data_problems(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with training a recipe on a data set."""
    if len(dataset.classes) != recipe.data.classes:
        yield Problem(
            "data.classes",
            f"{dataset.named} has {len(dataset.classes)} classes, the recipe's model {recipe.data.classes} outputs. "
            f"To train on this data: --data.classes {len(dataset.classes)}",
        )
    if "train" in dataset.splits and (shown := recipe.data.subset or len(dataset.splits["train"])) < recipe.batch:
        yield Problem(
            "batch",
            f"--batch {recipe.batch} is more than the {shown} training images of {dataset.named}; "
            f"an epoch would have no step.",
        )
    if recipe.checkpoint.best != "none" and dataset.evaluation_split() is None:
        yield Problem(
            "checkpoint.best",
            f"--checkpoint.best {recipe.checkpoint.best}: {dataset.named} has no split `val` or `test` to evaluate on.",
        )
