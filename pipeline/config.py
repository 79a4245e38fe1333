"""A recipe: one frozen value that says everything about a run except where it is hosted.

Each field names its unit; its comment is also its help on the command line. All rules that concern more than
one field are in `problems`, which reports everything that is wrong at once, before anything is built.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Final, Literal

import timm
import torchvision

# their models are among timm's from here on
from pipeline import cifar_resnet, vit_plain, vit_pytorch, vit_stem  # noqa: F401
from shards.dataset import Dataset

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A timm model; fields that are None stay as its name says."""

    name: str  # any model of timm
    img_size: int = 224  # side of the square input, pixels
    patch_size: int | None = None  # pixels
    width: int | None = None  # embedding dimension
    depth: int | None = None  # blocks
    heads: int | None = None  # attention heads
    mlp_ratio: float | None = None  # width of the hidden layer of a block over its own
    layer_scale: float | None = None  # initial factor of what a block adds
    drop_path: float = 0.0  # stochastic depth: rate of the last block, rising linearly from 0
    pretrained: bool = False  # start from timm's published weights
    checkpoint: str = ""  # start from these weights: .safetensors, or a state dict of torch.save
    new_head: bool = False  # leave the head of those weights out, for other classes
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the input, channels in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What the recipe expects of its data, and how it is ordered and read."""

    classes: int  # classes of the data, outputs of the model
    images: int  # training images the recipe was written for; a plan without data uses it
    subset: int = 0  # train on so many of the images, chosen by the seed; 0: on all
    repeats: int = 1  # repeated augmentation: views of an image in an epoch that shows it
    epoch: Literal["views", "images"] = "views"  # an epoch is as many views as images (DeiT), or all images
    window: int = 8192  # samples that are shuffled among each other
    workers: int | Literal["auto"] = "auto"  # loader processes beside each training process; 0: none
    max_bad: float = 0.001  # share of the training samples that may be unusable before the run stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How a view is made of an image."""

    crop: Literal["resized", "padded", "whole"] = "resized"  # random resized crop, padded crop, or none
    scale: tuple[float, float] = (0.08, 1.0)  # share of the area that a resized crop takes
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a resized crop
    pad: int = 4  # pixels around the image for a padded crop
    flip: float = 0.5  # probability of a mirrored view
    policy: Literal["rand", "auto", "three"] = "rand"  # RandAugment, AutoAugment (1805.09501), 3-Augment (2204.07118)
    rand_ops: int = 0  # RandAugment: operations a view; 0: none
    rand_magnitude: float = 9.0  # of 10
    rand_std: float = 0.5  # standard deviation of the magnitude
    rand_prob: float = 0.5  # probability of each operation
    jitter: float = 0.0  # brightness, contrast and saturation change by a factor within 1 +- this
    rotate: float = 0.0  # largest rotation, degrees
    shear: float = 0.0  # largest horizontal shear, degrees
    erase: float = 0.0  # random erasing: probability of one box of noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Mixup, CutMix, label smoothing, and the loss that their labels go into."""

    mixup_alpha: float = 0.0  # Beta parameter; 0: no mixup
    cutmix_alpha: float = 0.0  # Beta parameter; 0: no cutmix
    prob: float = 1.0  # probability that a batch is mixed
    switch_prob: float = 0.5  # probability of CutMix where both are on
    smoothing: float = 0.0  # label smoothing
    loss: Literal["ce", "bce"] = "ce"  # cross-entropy, or binary: every class in the mixture is a whole one


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Distillation from a frozen teacher, which sees the same mixed views; off while `teacher` is empty."""

    teacher: str = ""  # a model of timm, torchvision:NAME, or local-dir:RUN, the folder of a run
    checkpoint: str = ""  # its weights: .safetensors, or a state dict of torch.save; empty: published, or the run's
    img_size: int | None = None  # side of its input, pixels; None: as its weights were trained
    mean: tuple[float, float, float] | None = None  # of its input; None: as its weights were trained
    std: tuple[float, float, float] | None = None  # of its input; None: as its weights were trained
    loss: Literal["hard", "soft"] = "hard"  # the teacher's class (DeiT, Eq. 3), or its probabilities (Eq. 2)
    weight: float = 0.5  # share of the teacher's loss: 1/2 in Eq. 3, lambda in Eq. 2
    tau: float = 1.0  # temperature of the soft loss
    kl: Literal["paper", "code"] = "paper"  # soft loss as in Eq. 2, or 1/classes of it, as deit/losses.py has it
    token: bool = True  # the teacher teaches a distillation token's head; no: the class token's
    fusion: Literal["paper", "code"] = "paper"  # of the two heads when evaluated: mean of softmaxes, or of logits
    top: int = 0  # classes kept of a soft answer, in fp16, the rest spread evenly; 0: all, as they are
    store: str = ""  # folder of stored answers: those in it are read, others asked for and added; empty: none
    store_epochs: int = 0  # after so many epochs the same views come again, with their answers; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Which parameters are trained, and how fast: for models that start from weights (`pipeline/finetune.py`)."""

    strategy: str = "full"  # full; linear: the head; partial-K: and K blocks, in halves; attention; gradual: head first
    norm: bool = False  # the final norm is trained too
    head_norm: bool = False  # batch norm without affine before the head, for linear probes (MAE, 2111.06377, A.1)
    head_epochs: float = 0.0  # gradual: epochs of the head alone
    head_lr: float = 1e-3  # gradual: rate of these epochs, neither scaled nor scheduled
    rates: Literal["same", "geometric", "divided", "linear"] = "same"  # by layer, from the head down
    decay: float = 1.0  # geometric: factor a block; divided: divisor a part; linear: share of the first layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """The optimizer and its schedule: linear warm-up, then half a cosine, by step."""

    name: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    lr: float  # peak rate for a global batch of lr_batch, scaled linearly to the recipe's
    lr_batch: int = 512  # images; 0: the rate is taken as it is
    weight_decay: float = 0.05  # not for biases, 1-D parameters, tokens and position embeddings
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw and lamb
    momentum: float = 0.9  # sgd
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6  # rate of the first step, not scaled
    min_lr: float = 1e-5  # rate after the last step, not scaled
    clip: float = 0.0  # largest norm of the gradient; 0: not clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """Moving average of the weights, evaluated beside them."""

    decay: float = 0.99996  # a step; 0: no average
    warmup: bool = True  # decay rises as 1 - step^(-2/3), so a short run has an average of its own end


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """Evaluation on the split `val`, or `test` where there is no `val`."""

    every_epochs: int = 1  # and always after the last step; 0: only then
    batch: int = 64  # images in one forward pass, the same on any hosting
    crop_ratio: float = 0.875  # side of the centre crop over the shorter side of the resized image


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """When to save, beside the end of the run."""

    every_steps: int = 0  # 0: never for this reason
    every_minutes: float = 15.0  # 0: never for this reason
    keep: int = 2  # the newest so many are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How the device computes a step: speed and memory, and no number but for rounding (docs/speed.md)."""

    compile: bool = False  # torch.compile each block, or a network that has none as a whole
    activation_checkpointing: bool = False  # of a block keep its input, and compute the rest again in the backward pass
    channels_last: bool = True  # memory layout of the images, as they are decoded; convolutions keep it
    fused_optimizer: bool = True  # one kernel updates all parameters
    tf32: bool = True  # matrix products of fp32 on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """What to do where a loss or a gradient is not finite, or a loss leaps: its samples are named in any case."""

    policy: Literal["stop", "skip", "rollback"] = "stop"  # or leave out its step, or all since a checkpoint by steps
    factor: float = 0.0  # a loss of so many times the median of the last 32 steps leaps; 0: none does
    limit: int = 3  # spikes of a run that are left out; at the next one it stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written while training."""

    every_steps: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run, but for its hosting."""

    name: str  # of the recipe
    model: Model
    data: Data
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    distill: Distill = field(default_factory=Distill)
    finetune: Finetune = field(default_factory=Finetune)
    optim: Optim
    ema: Ema = field(default_factory=Ema)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    compute: Compute = field(default_factory=Compute)
    spike: Spike = field(default_factory=Spike)
    log: Log = field(default_factory=Log)
    batch: int  # images of one step, over all virtual ranks
    virtual_ranks: int  # equal parts of the batch with their own order and mixing; processes host them
    epochs: int
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 autocast where the processor has it
    micro_batch: int = 0  # largest number of images in one forward pass; 0: a virtual rank's part

    @property
    def rank_batch(self) -> int:
        """Images of one virtual rank in a step."""
        return self.batch // self.virtual_ranks

    @property
    def pass_batch(self) -> int:
        """Images of one forward pass; a virtual rank's last one in a step may have fewer."""
        return min(self.micro_batch or self.rank_batch, self.rank_batch)

    @property
    def passes(self) -> int:
        """Forward passes of one virtual rank in a step."""
        return -(-self.rank_batch // self.pass_batch)

    @property
    def peak_lr(self) -> float:
        """The rate after warm-up, for this recipe's batch."""
        return self.optim.lr * (self.batch / self.optim.lr_batch if self.optim.lr_batch else 1)


EngineName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]  # `pipeline/engine.py`

A_RUN: Final = "local-dir:"  # before the folder of a run, in the place of a model's name

# Fields that say how a run is hosted or watched; all others make it the run that it is.
HOSTING: Final = frozenset(
    {"precision", "micro_batch", "data.workers", "data.max_bad", "eval.every_epochs", "model.pretrained"}
    | {"model.checkpoint", "model.new_head", "log.every_steps", "distill.checkpoint", "distill.store", "distill.fusion"}
    | {f"checkpoint.{item.name}" for item in fields(Checkpoint)}
    | {f"compute.{item.name}" for item in fields(Compute)}
    | {f"spike.{item.name}" for item in fields(Spike)}
)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted field name: value} of a recipe, or of one read back from JSON."""
    pairs = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    flat: dict[str, Any] = {}
    for name, item in pairs.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(item) if isinstance(item, tuple) else item
    return flat


def identity(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that make the run what it is; two runs that differ in none see the same numbers."""
    fields = {name: value for name, value in flatten(recipe).items() if name not in HOSTING}
    if str(fields.get("distill.teacher")).startswith(A_RUN):
        fields["distill.teacher"] = A_RUN  # wherever it lies; its weights are compared by their hash
    return fields


def problems(recipe: Recipe, dataset: Dataset | None, processes: int, engine: EngineName = "ddp") -> list[str]:
    """Return everything that is wrong with a request, one sentence each; an empty list if nothing is."""
    return [
        *_of_recipe(recipe),
        *_of_hosting(recipe, processes),
        *(_of_engine(recipe, processes, engine) if engine != "ddp" else ()),
        *(_of_data(recipe, dataset) if dataset else ()),
    ]


def _of_recipe(recipe: Recipe) -> Iterator[str]:
    flat = flatten(recipe)
    for name in POSITIVE:
        if not flat[name] > 0:
            yield f"--{flag(name)} is {flat[name]}; it must be more than 0."
    for name in NOT_NEGATIVE:
        if isinstance(flat[name], (int, float)) and flat[name] < 0:
            yield f"--{flag(name)} is {flat[name]}; it must not be negative."
    for name in SHARES:
        if not 0 <= flat[name] <= 1:
            yield f"--{flag(name)} is {flat[name]}; it must lie between 0 and 1."
    if recipe.virtual_ranks > 0 and recipe.batch % recipe.virtual_ranks:
        fitting = [k for k in range(1, recipe.batch + 1) if recipe.batch % k == 0]
        nearest = min(fitting, key=lambda k: abs(k - recipe.virtual_ranks))
        yield (
            f"--batch {recipe.batch} cannot be divided among --virtual-ranks {recipe.virtual_ranks}; "
            f"the nearest number that divides it is {nearest}."
        )
    yield from _unknown_model("--model.name", recipe.model.name, timm.list_models())
    if recipe.model.patch_size and recipe.model.img_size % recipe.model.patch_size:
        yield (
            f"--model.img-size {recipe.model.img_size} is not a multiple of "
            f"--model.patch-size {recipe.model.patch_size}."
        )
    if not re.fullmatch(r"full|linear|attention|gradual|partial-[\d./]+", recipe.finetune.strategy):
        yield (
            f"--finetune.strategy {recipe.finetune.strategy!r} is none of full, linear, partial-K (K blocks; 1/2: an "
            f"MLP), attention and gradual."
        )
    if (recipe.finetune.strategy == "gradual") != bool(recipe.finetune.head_epochs):
        yield "--finetune.strategy gradual and --finetune.head-epochs go together: how long is the head trained alone?"
    if recipe.finetune.head_epochs > recipe.epochs:
        yield f"--finetune.head-epochs {recipe.finetune.head_epochs} is longer than --epochs {recipe.epochs}."
    if recipe.mix.loss == "bce" and recipe.mix.smoothing:
        yield "--mix.loss bce takes labels as they are: --mix.smoothing 0 goes with it."
    if recipe.optim.warmup_epochs > recipe.epochs > 0:
        yield f"--optim.warmup-epochs {recipe.optim.warmup_epochs} is longer than --epochs {recipe.epochs}."
    if recipe.spike.policy == "rollback" and not recipe.checkpoint.every_steps:
        yield "--spike.policy rollback goes back to checkpoints by steps: how many, --checkpoint.every-steps?"
    if 0 < recipe.spike.factor <= 1:
        yield f"--spike.factor {recipe.spike.factor}: every loss would leap; take more than 1, or 0 for none."
    yield from _of_distill(recipe)


def _unknown_model(option: str, name: str, known: list[str]) -> Iterator[str]:
    """Complain of a name that is in no list of models; a timm name may have a tag behind a dot."""
    if name not in known and name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3)
        yield f"{option} {name!r} is not known" + (f"; near: {', '.join(near)}." if near else ".")


def _of_distill(recipe: Recipe) -> Iterator[str]:
    distill, default = recipe.distill, Distill()
    if not distill.teacher:
        changed = [item.name for item in fields(Distill) if getattr(distill, item.name) != getattr(default, item.name)]
        if changed:
            names = ", ".join(f"--distill.{flag(name)}" for name in changed)
            yield f"{names}: there is no teacher; name one with --distill.teacher."
        return
    if not distill.teacher.startswith(A_RUN):
        theirs = [f"torchvision:{name}" for name in torchvision.models.list_models()]
        yield from _unknown_model("--distill.teacher", distill.teacher, timm.list_models() + theirs)
    elif distill.checkpoint:
        yield f"--distill.checkpoint: the weights of --distill.teacher {distill.teacher} are that folder's own."
    if distill.loss == "hard" and distill.top:
        yield "--distill.top is for --distill.loss soft; a hard answer is one class."
    if distill.top > recipe.data.classes:
        yield f"--distill.top {distill.top} is more than the {recipe.data.classes} classes."
    if distill.store and distill.loss == "soft" and not distill.top:
        yield "--distill.store: say with --distill.top how many classes of a soft answer to keep (4 bytes each a view)."
    if distill.store and recipe.data.classes >= 2**16:
        yield f"--distill.store holds answers of at most {2**16 - 1:,} classes, not {recipe.data.classes:,}."


def _of_hosting(recipe: Recipe, processes: int) -> Iterator[str]:
    if processes > recipe.virtual_ranks > 0:
        yield (
            f"{processes} processes cannot host --virtual-ranks {recipe.virtual_ranks}: each needs one at least. "
            f"Start at most {recipe.virtual_ranks} processes."
        )


def _of_engine(recipe: Recipe, processes: int, engine: EngineName) -> Iterator[str]:
    """Complain of what engines that spread a run's state over processes cannot do."""
    if recipe.virtual_ranks >= processes and recipe.virtual_ranks % processes:
        fitting = ", ".join(str(k) for k in range(1, recipe.virtual_ranks + 1) if recipe.virtual_ranks % k == 0)
        yield (
            f"{processes} processes cannot host --virtual-ranks {recipe.virtual_ranks} under {engine}, where all pass "
            f"through the model equally often. Start {fitting}, or take DDP, which hosts unequal shares."
        )
    if recipe.optim.name == "lamb":
        yield f"--optim.name lamb needs each parameter in one piece, which {engine} takes apart. Take DDP for it."
    if recipe.compute.compile and engine == "zero3":
        yield f"--compute.compile: {engine} fetches weights layer by layer, which leaves pieces to compile. Take FSDP2."
    if recipe.finetune.strategy == "gradual" and engine != "fsdp2":
        yield f"--finetune.strategy gradual: {engine} counts the steps of all parameters as one. Take DDP or FSDP2."


def _of_data(recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    if len(dataset.classes) != recipe.data.classes:
        yield (
            f"{dataset.folder} has {len(dataset.classes)} classes, the recipe's model {recipe.data.classes} outputs. "
            f"To train on this data: --data.classes {len(dataset.classes)}"
        )
    for index in dataset.splits.values():
        highest = int(index.rows["label"].max())
        if highest >= len(dataset.classes):
            yield f"{index.folder}: has label {highest}, but dataset.json names {len(dataset.classes)} classes."
    if "train" not in dataset.splits:
        yield f"{dataset.folder}: no split `train` (it has {', '.join(dataset.splits)})."
    elif (images := len(dataset.splits["train"])) < recipe.data.subset:
        yield f"--data.subset {recipe.data.subset} is more than the {images} training images in {dataset.folder}."
    elif (shown := recipe.data.subset or images) < recipe.batch:
        yield (
            f"--batch {recipe.batch} is more than the {shown} training images of {dataset.folder}; "
            f"an epoch would have no step."
        )


POSITIVE: Final = (
    "batch", "virtual_ranks", "epochs", "model.img_size", "data.classes", "data.images", "data.repeats",
    "data.window", "distill.tau", "finetune.decay", "finetune.head_lr", "optim.lr", "eval.batch", "eval.crop_ratio",
    "checkpoint.keep", "log.every_steps",
)  # fmt: skip
NOT_NEGATIVE: Final = (
    "seed", "micro_batch", "data.subset", "data.workers", "augment.pad", "augment.rand_ops", "augment.rand_std",
    "augment.rotate", "augment.shear", "mix.mixup_alpha", "mix.cutmix_alpha", "distill.top", "distill.store_epochs",
    "finetune.head_epochs", "optim.weight_decay", "optim.warmup_epochs", "optim.warmup_lr", "optim.min_lr",
    "optim.clip", "optim.lr_batch", "eval.every_epochs", "checkpoint.every_steps", "checkpoint.every_minutes",
    "spike.factor", "spike.limit",
)  # fmt: skip
SHARES: Final = (
    "model.drop_path", "data.max_bad", "augment.flip", "augment.rand_prob", "augment.jitter", "augment.erase",
    "mix.prob", "mix.switch_prob", "mix.smoothing", "distill.weight", "ema.decay", "eval.crop_ratio",
)  # fmt: skip


def flag(name: str) -> str:
    """Return a dotted field name as it is written on the command line."""
    return name.replace("_", "-")
