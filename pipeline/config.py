"""A recipe: one frozen value that says everything about a run except where it is hosted.

Beside each field stand its role, its range and what else is known of it (`pipeline/fields.py`); its comment names
the unit and is its help on the command line. The rules that concern more than one field are in `pipeline/rules.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from pipeline.fields import (
    AT_LEAST_1,
    COST,
    FINITE,
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    RUN,
    SHARE,
    VIEW,
    OnlyWith,
    Place,
    Range,
    Role,
    facts,
    flatten,
)

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

EngineName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]  # `pipeline/update/engine.py`
ScheduleName = Literal["timm", "pycls", "big_vision", "wsd"]  # `pipeline/update/schedule.py`
DecayShape = Literal["linear", "sqrt", "cosine"]
Metric = Literal["none", "top1", "top5", "loss"]  # `pipeline/session/best.py`
Precision = Literal["bf16", "fp32"]
Crop = Literal["resized", "padded", "simple", "whole"]  # `pipeline/data/augment.py`
Policy = Literal["rand", "rand_tf", "auto", "auto_v0", "three"]  # `pipeline/data/policy.py`
Switch = Literal["auto", "on", "off"]
Interpolation = Literal["bicubic", "bilinear"]
ClassWeights = tuple[float, ...] | Literal["balanced"]
Channels = tuple[float, float, float]  # a number for each of red, green and blue

TAUGHT: Final = OnlyWith("distill.teacher")
SOFT: Final = OnlyWith("distill.loss", ("soft",))
RESIZED: Final = OnlyWith("augment.crop", ("resized",))
PADDED: Final = OnlyWith("augment.crop", ("padded", "simple"))
RAND: Final = OnlyWith("augment.policy", ("rand", "rand_tf"))
VARIED: Final = OnlyWith("augment.policy", ("rand",))
TOKEN: Final = OnlyWith("distill.token", (True,))
BOTH_MIXES: Final = (OnlyWith("mix.mixup_alpha"), OnlyWith("mix.cutmix_alpha"))
SKIPPING: Final = OnlyWith("spike.policy", ("skip", "rollback"))
GRADUAL: Final = OnlyWith("finetune.strategy", ("gradual",))
BY_LAYER: Final = OnlyWith("finetune.rates", ("geometric", "divided", "linear"))
ADAPTIVE: Final = OnlyWith("optim.name", ("adamw", "adam", "lamb"))
SGD: Final = OnlyWith("optim.name", ("sgd",))
MOMENTUM: Final = OnlyWith("optim.momentum")
AVERAGED: Final = OnlyWith("ema.decay")
WSD: Final = OnlyWith("optim.schedule", ("wsd",))
JUDGED: Final = OnlyWith("checkpoint.best", ("top1", "top5", "loss"))

RISING: Final = Range(0, excluded=True, ascending=True)
MEAN: Final = Range(0, 1, note=" (divide values of 0 to 255 by 255)")
STD: Final = Range(0, 1, excluded=True, note=MEAN.note)
RISING_SHARES: Final = Range(0, 1, excluded=True, ascending=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of timm or torchvision; fields that are None stay as its name says."""

    name: Annotated[str, RUN, COST]  # any model of timm, or torchvision:NAME; `vitrail models` lists them
    img_size: Annotated[int, VIEW, COST, AT_LEAST_1] = 224  # side of the square input, pixels
    patch_size: Annotated[int | None, RUN, COST, AT_LEAST_1] = None  # side of a square patch, pixels
    width: Annotated[int | None, RUN, COST, AT_LEAST_1] = None  # embedding dimension
    depth: Annotated[int | None, RUN, COST, AT_LEAST_1] = None  # blocks
    heads: Annotated[int | None, RUN, COST, AT_LEAST_1] = None  # attention heads
    mlp_ratio: Annotated[float | None, RUN, COST, POSITIVE] = None  # width of a block's hidden layer over its own
    layer_scale: Annotated[float | None, RUN, COST, FINITE] = None  # initial factor of what a block adds
    drop_path: Annotated[float, RUN, COST, Range(0, 0.99)] = 0.0  # stochastic depth: rate of the last block
    drop_path_rule: Annotated[Literal["linear", "uniform"], RUN] = "linear"  # its rates: rising from 0, or all alike
    dropout: Annotated[float, RUN, COST, Range(0, 0.99)] = 0.0  # rate of its layers of dropout
    pretrained: Annotated[bool, RUN] = False  # start from its published weights
    weights: Annotated[Place, FREE] = ""  # start from this file, or from a folder that has one (docs/finetuning.md)
    new_head: Annotated[bool, RUN, OnlyWith("model.weights")] = False  # leave the file's head out, for other classes
    mean: Annotated[Channels | None, VIEW, MEAN] = None  # of input in [0, 1]; None: as its weights', else ImageNet's
    std: Annotated[Channels | None, VIEW, STD] = None  # deviation of input channels; None: likewise

    @property
    def from_scratch(self) -> "Model":
        """The same model with weights that are drawn from the seed."""
        return replace(self, pretrained=False, weights="", new_head=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What the recipe expects of its data, and how it is ordered and read."""

    classes: Annotated[int, VIEW, COST, AT_LEAST_1]  # classes of the data, outputs of the model
    images: Annotated[int, FREE, AT_LEAST_1]  # training images the recipe was written for; a plan without data uses it
    subset: Annotated[int, VIEW, NOT_NEGATIVE] = 0  # train on so many of the images, chosen by the seed; 0: on all
    repeats: Annotated[int, VIEW, COST, AT_LEAST_1] = 1  # repeated augmentation: views of an image that an epoch shows
    balance: Annotated[bool, VIEW] = False  # every class equally often: images of rare ones come several times
    epoch: Annotated[Literal["views", "images"], VIEW] = "views"  # as many views as images (DeiT), or all images
    window: Annotated[int, VIEW, AT_LEAST_1] = 8192  # the shuffle buffer, in samples
    workers: Annotated[int | Literal["auto"], FREE, NOT_NEGATIVE] = "auto"  # loader processes of a process; 0: none
    max_bad: Annotated[float, FREE, SHARE] = 0.001  # share of unusable training samples at which the run stops
    strict: Annotated[bool, FREE] = False  # stop at the first unusable sample of any split
    cache: Annotated[Place, FREE] = ""  # folder for what is fetched or built of data; empty: the user's cache folder
    cache_limit: Annotated[str, FREE] = "80%"  # of fetched tars in it: 200GB, or a share of what its disk has free
    splits: Annotated[tuple[str, ...], FREE] = ()  # other roles: train=train+val val=test; of tars: train=PATTERN
    label: Annotated[str, FREE] = "auto"  # in tars: auto (.cls, .cls.txt), txt, json:FIELD, or folder, of the key
    first_label: Annotated[int | None, FREE, NOT_NEGATIVE] = None  # number of the first class in tars; None: 0
    class_names: Annotated[Place, FREE] = ""  # file that names the classes of tars, one a line

    def allowed_bad(self, images: int) -> int:
        """Return how many of so many training images may be unusable before the run stops."""
        return 0 if self.strict else int(self.max_bad * images)

    def too_many_bad(self, bad: int, images: int) -> str:
        """Return the sentence that so many training images of `images` are too many; empty where they are not."""
        if bad <= self.allowed_bad(images):
            return ""
        rule = "--data.strict allows" if self.strict else f"--data.max-bad {self.max_bad} allows"
        return f"{bad} of {images} training samples cannot be used, more than {rule}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How a view is made of an image."""

    crop: Annotated[Crop, VIEW, COST] = "resized"  # random resized, padded, simple (DeiT III on ImageNet-21k), or none
    scale: Annotated[tuple[float, float], VIEW, RISING_SHARES, RESIZED] = (0.08, 1.0)  # share of the area that is left
    ratio: Annotated[tuple[float, float], VIEW, RISING, RESIZED] = (3 / 4, 4 / 3)  # width over height of a resized crop
    pad: Annotated[int, VIEW, NOT_NEGATIVE, PADDED] = 4  # pixels around the image for a padded or a simple crop
    interpolation: Annotated[Interpolation, VIEW, COST] = "bicubic"  # in resizing: antialiased, or of four pixels alone
    flip: Annotated[float, VIEW, SHARE] = 0.5  # probability of a mirrored view
    policy: Annotated[Policy, VIEW, COST] = "rand"  # Rand-, Auto- or 3-Augment; rand_tf: big_vision's; auto_v0: pycls's
    rand_ops: Annotated[int, VIEW, COST, NOT_NEGATIVE, RAND] = 0  # RandAugment: operations a view; 0: none
    rand_magnitude: Annotated[float, VIEW, Range(0, 10), RAND] = 9.0  # strength of the operations, 0 to 10
    rand_std: Annotated[float, VIEW, NOT_NEGATIVE, VARIED] = 0.5  # standard deviation of the magnitude
    rand_prob: Annotated[float, VIEW, SHARE, VARIED] = 0.5  # probability of each operation
    jitter: Annotated[float, VIEW, SHARE] = 0.0  # brightness, contrast, saturation change by a factor within 1 +- this
    rotate: Annotated[float, VIEW, Range(0, 180)] = 0.0  # largest rotation, degrees
    shear: Annotated[float, VIEW, Range(0, 89)] = 0.0  # largest horizontal shear, degrees
    erase: Annotated[float, VIEW, SHARE] = 0.0  # random erasing: probability of one box of noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Mixup, CutMix, label smoothing, and the loss that their labels go into."""

    mixup_alpha: Annotated[float, VIEW, NOT_NEGATIVE] = 0.0  # Beta parameter; 0: no mixup
    cutmix_alpha: Annotated[float, VIEW, NOT_NEGATIVE] = 0.0  # Beta parameter; 0: no cutmix
    prob: Annotated[float, VIEW, SHARE] = 1.0  # probability that a batch is mixed
    switch_prob: Annotated[float, VIEW, SHARE, *BOTH_MIXES] = 0.5  # probability of CutMix where both are on
    smoothing: Annotated[float, RUN, SHARE] = 0.0  # label smoothing
    loss: Annotated[Literal["ce", "bce"], RUN] = "ce"  # cross-entropy, or binary: every class in the mixture is one
    class_weights: Annotated[ClassWeights, RUN, NOT_NEGATIVE] = ()  # of each class in the loss; balanced: by rarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Distillation from a frozen teacher, which sees the same mixed views; off while `teacher` is empty."""

    teacher: Annotated[Place, VIEW, COST] = ""  # a model of timm, torchvision:NAME, or local-dir:RUN, a run's folder
    weights: Annotated[Place, FREE, TAUGHT] = ""  # its weights, a file; empty: the published ones, or the run's
    img_size: Annotated[int | None, VIEW, COST, AT_LEAST_1, TAUGHT] = None  # side of its input; None: as it was trained
    mean: Annotated[Channels | None, VIEW, MEAN, TAUGHT] = None  # of its input; None: as it was trained
    std: Annotated[Channels | None, VIEW, STD, TAUGHT] = None  # of its input; None: as it was trained
    loss: Annotated[Literal["hard", "soft"], VIEW, TAUGHT] = "hard"  # the teacher's class (DeiT, Eq. 3), or Eq. 2
    weight: Annotated[float, RUN, SHARE, TAUGHT] = 0.5  # share of the teacher's loss: 1/2 in Eq. 3, lambda in Eq. 2
    tau: Annotated[float, RUN, POSITIVE, TAUGHT, SOFT] = 1.0  # temperature of the soft loss
    kl: Annotated[Literal["paper", "code"], RUN, TAUGHT, SOFT] = "paper"  # Eq. 2, or 1/classes of it: deit/losses.py
    token: Annotated[bool, RUN, TAUGHT] = True  # the teacher teaches a distillation token's head; no: the class token's
    fusion: Annotated[Literal["paper", "code"], FREE, TAUGHT, TOKEN] = "paper"  # of the heads: softmaxes, or logits
    top: Annotated[int, VIEW, NOT_NEGATIVE, TAUGHT, SOFT] = 0  # classes kept of a soft output, in fp16; 0: all, exactly
    store: Annotated[Place, FREE, TAUGHT] = ""  # folder of stored outputs: read where they are there, else added
    store_epochs: Annotated[int, VIEW, NOT_NEGATIVE, TAUGHT] = 0  # after so many epochs the same views again; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Which parameters are trained, and how fast: for models that start from weights (`pipeline/model/finetune.py`)."""

    strategy: Annotated[str, RUN, COST] = "full"  # full, linear, classifier, partial-K, attention; gradual: head first
    norm: Annotated[bool, RUN, COST] = False  # the final norm is trained too
    head_norm: Annotated[bool, RUN] = False  # batch norm without affine before the head, for linear probes (MAE, A.1)
    head_epochs: Annotated[float, RUN, NOT_NEGATIVE] = 0.0  # gradual: epochs of the head alone
    head_lr: Annotated[float, RUN, POSITIVE, GRADUAL] = 1e-3  # gradual: rate of the head's own epochs
    rates: Annotated[Literal["same", "geometric", "divided", "linear"], RUN] = "same"  # by layer, from the head down
    decay: Annotated[float, RUN, POSITIVE, BY_LAYER] = 1.0  # factor of a block, divisor of a part, or the first's share
    cache: Annotated[Place, FREE] = ""  # folder of what the frozen part gives of each image, computed once


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """The optimizer and its schedule: linear warm-up, then half a cosine or wsd (`pipeline/update/schedule.py`)."""

    name: Annotated[str, RUN, COST] = "adamw"  # adam, sgd, lamb, or any of timm's: muon, lion, ... (docs/training.md)
    args: Annotated[tuple[str, ...], RUN, COST] = ()  # its further arguments, as key=value: ns_steps=5 betas=0.9,0.95
    lr: Annotated[float, RUN, POSITIVE]  # peak rate for a global batch of lr_batch, scaled linearly to the recipe's
    lr_batch: Annotated[int, RUN, NOT_NEGATIVE] = 512  # images; 0: the rate is taken as it is
    weight_decay: Annotated[float, RUN, NOT_NEGATIVE] = 0.05  # not for biases, norms, and what the model exempts
    betas: Annotated[tuple[float, float], RUN, Range(0, 0.999999), ADAPTIVE] = (0.9, 0.999)  # of adam, adamw, lamb
    eps: Annotated[float, RUN, POSITIVE, ADAPTIVE] = 1e-8  # what adam, adamw, lamb add to the root of the second moment
    momentum: Annotated[float, RUN, SHARE, SGD] = 0.9  # of sgd
    nesterov: Annotated[bool, RUN, SGD, MOMENTUM] = False  # Nesterov's momentum, which timm's own `sgd` has
    schedule: Annotated[ScheduleName, RUN] = "timm"  # whose cosine (docs/recipes.md), or wsd: warm-up, stable, decay
    decay_epochs: Annotated[float, RUN, NOT_NEGATIVE, WSD] = 0.0  # wsd: the last epochs, in which the rate falls
    decay_shape: Annotated[DecayShape, RUN, WSD] = "linear"  # wsd: or 1 - sqrt, half a cosine
    warmup_epochs: Annotated[float, RUN, NOT_NEGATIVE] = 5.0  # epochs in which the rate rises linearly
    warmup_lr: Annotated[float, RUN, NOT_NEGATIVE] = 1e-6  # rate of the first step, not scaled
    min_lr: Annotated[float, RUN, NOT_NEGATIVE] = 1e-5  # rate after the last step, not scaled
    clip: Annotated[float, RUN, NOT_NEGATIVE] = 0.0  # largest norm of the gradient; 0: not clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """Moving average of the weights, evaluated beside them."""

    decay: Annotated[float, RUN, COST, SHARE] = 0.99996  # of a step; 0: no average
    more: Annotated[tuple[float, ...], RUN, COST, POSITIVE_SHARE, AVERAGED] = ()  # decays of further averages
    warmup: Annotated[bool, RUN] = True  # decay rises as 1 - step^(-2/3): a short run has an average of its own end

    @property
    def decays(self) -> dict[str, float]:
        """The decay of each average, by the name that it is evaluated and saved under."""
        named = {"ema": self.decay} if self.decay else {}
        return named | {f"ema-{decay:g}": decay for decay in self.more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """Evaluation on the split `val`, or `test` where there is no `val`."""

    every_epochs: Annotated[int, FREE, NOT_NEGATIVE] = 1  # epochs between evaluations; 0: by steps, and at the end
    every_steps: Annotated[int, FREE, NOT_NEGATIVE] = 0  # steps between evaluations; 0: by epochs alone
    patience: Annotated[int, FREE, NOT_NEGATIVE, JUDGED] = 0  # end after so many evaluations with none better; 0: never
    batch: Annotated[int, FREE, AT_LEAST_1] = 64  # images in one forward pass, the same on any hosting
    crop_ratio: Annotated[float, FREE, POSITIVE_SHARE] = 0.875  # side of the centre crop over the image's shorter side


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """When to save, beside the end of the run."""

    every_steps: Annotated[int, FREE, NOT_NEGATIVE] = 0  # steps between checkpoints; 0: none by steps
    every_epochs: Annotated[int, FREE, NOT_NEGATIVE] = 0  # epochs between checkpoints; 0: none by epochs
    every_minutes: Annotated[float, FREE, NOT_NEGATIVE] = 15.0  # minutes between checkpoints; 0: none by the clock
    keep: Annotated[int, FREE, AT_LEAST_1] = 2  # the newest so many are kept
    best: Annotated[Metric, FREE] = "none"  # keep and export the best by a metric of the evaluations, not the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How the device computes a step: speed and memory, and no number but for rounding (docs/speed.md)."""

    compile: Annotated[Switch, FREE, COST] = "auto"  # torch.compile each block; auto: on a GPU, in a run that repays it
    activation_checkpointing: Annotated[bool, FREE, COST] = False  # keep a block's input, compute the rest again
    channels_last: Annotated[bool, FREE, COST] = True  # memory layout of images and convolutions
    fused_optimizer: Annotated[bool, FREE, COST] = True  # one kernel updates all parameters
    tf32: Annotated[bool, FREE, COST] = True  # matrix products of fp32 on a GPU
    deterministic: Annotated[bool, FREE, COST] = True  # the same hosting gives the same bits, on a GPU too


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """What to do where a loss or a gradient is not finite, or a loss leaps: its samples are named in any case."""

    policy: Annotated[Literal["stop", "skip", "rollback"], FREE] = "stop"  # skip: its step; rollback: all since a save
    factor: Annotated[float, FREE, NOT_NEGATIVE] = 0.0  # a loss of so many medians of 32 steps leaps; 0: none does
    limit: Annotated[int, FREE, NOT_NEGATIVE, SKIPPING] = 3  # spikes of a run that are skipped; the next one stops it


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written while training."""

    every_steps: Annotated[int, FREE, AT_LEAST_1] = 50  # steps between lines of the log
    trackers: Annotated[str, FREE] = "tensorboard"  # Accelerate's: tensorboard,wandb,mlflow,...
    histograms: Annotated[bool, FREE] = False  # of all weights, in TensorBoard, at each evaluation
    profile: Annotated[int, FREE, NOT_NEGATIVE] = 0  # steps of a session that torch's profiler traces; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run, but for its hosting."""

    name: Annotated[str, FREE]  # name of the recipe
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
    batch: Annotated[int, VIEW, AT_LEAST_1]  # images of one step, over all virtual ranks
    virtual_ranks: Annotated[int, VIEW, AT_LEAST_1]  # equal parts of the batch with their own order and mixing
    epochs: Annotated[int, RUN, AT_LEAST_1]  # how often --data.epoch is gone through
    seed: Annotated[int, VIEW, Range(0, 2**63 - 1)] = 0  # of everything that is random
    precision: Annotated[Literal["auto", "bf16", "fp32"], FREE, COST] = "auto"  # auto: bf16 where it is native
    micro_batch: Annotated[int | Literal["auto"], FREE, COST, AT_LEAST_1] = "auto"  # images of a pass; auto: what fits

    @property
    def rank_batch(self) -> int:
        """Images of one virtual rank in a step."""
        return self.batch // self.virtual_ranks

    @property
    def peak_lr(self) -> float:
        """The rate after warm-up, for this recipe's batch."""
        return self.optim.lr * (self.batch / self.optim.lr_batch if self.optim.lr_batch else 1)


FIELDS: Final = facts(Recipe)  # all that is known of each field, by dotted name

LOCAL_DIR: Final = "local-dir:"  # before the folder of a run, in the place of a model's name


def identity(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that make the run what it is; two runs that differ in none see the same numbers.

    Where a loss leaps, `spike` may skip steps in one of them; its checkpoints say which. Fields that are not known, of
    a recipe read back from JSON, are among them.
    """
    kept = {name: value for name, value in flatten(recipe).items()
            if name not in FIELDS or FIELDS[name].role is not Role.FREE}  # fmt: skip
    if str(kept.get("distill.teacher")).startswith(LOCAL_DIR):
        kept["distill.teacher"] = LOCAL_DIR  # wherever it lies; its weights are compared by their hash
    return kept


def view_fields(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that decide which views there are, what they look like, and what is kept of a teacher.

    The student, its optimizer, the number of epochs and the hosting are not among them.
    """
    return {name: value for name, value in identity(recipe).items() if FIELDS[name].role is Role.VIEW}


def cost_fields(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that decide how long a step takes, or how much memory."""
    return {name: value for name, value in flatten(recipe).items() if FIELDS[name].cost}
