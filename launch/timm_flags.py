"""The flags of timm's train.py and of DeiT's main.py, with their defaults, and what becomes of each in a recipe.

Sources: train.py of huggingface/pytorch-image-models at 2aabaef, and its later flags; main.py and run_with_submitit.py
of facebookresearch/deit at 7e160fe. A command line is read by argparse, as they read it, abbreviations included.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn

from shards.errors import BadRequest

Program = Literal["deit", "timm"]
Kind = Literal["int", "float", "text", "switch", "floats", "ints", "texts", "shape"]  # a shape is three numbers
SCRIPT: Final[Mapping[Program, str]] = {"deit": "main.py", "timm": "train.py"}
ABSENT: Final = ...  # the default of a flag that a program has not


class Flag(NamedTuple):
    """A flag of theirs."""

    name: str  # without dashes before it
    kind: Kind
    deit: Any  # its default in main.py
    timm: Any  # its default in train.py
    fields: str = ""  # fields of a recipe that it decides, with commas between
    why: str = ""  # without fields: why a recipe has none
    same: Any = ABSENT  # without fields: the value that a run here has anyway
    others: tuple[str, ...] = ()  # other spellings, with dashes


AT_RUN: Final = "said when it is run"
HOSTING: Final = "hosting is the launcher's, and changes no result"
LOADER: Final = "the loader's own business, which changes no view"
OTHER_SCHEDULE: Final = "for schedules that a recipe has not: it has three cosines, and wsd"
NOISE: Final = "the rate of a recipe has no noise"
CYCLES: Final = "a recipe's cosine falls once, from its peak to its floor"
BATCH_NORM: Final = "batch norm is as the model has it, with statistics over a virtual rank"
SPLITS: Final = "a view is made once, without clean and augmented splits"
NAFLEX: Final = "images of one size: no NaFlex loader"
KD: Final = "its losses are weighed otherwise here: see docs/distillation.md"
TRACKER: Final = "--log.trackers wandb writes to the project vitrail, and goes on with the same run"
SUBMITIT: Final = "vitrail slurm writes the job script"
MULTILABEL: Final = "an image has one label"

FLAGS: Final = (
    # model
    Flag("model", "text", "deit_base_patch16_224", "resnet50", "model.name, model.layer_scale, model.drop_path_rule"),
    Flag("input-size", "int", 224, ABSENT, "model.img_size, augment.crop"),
    Flag("input-size", "shape", ABSENT, None, "model.img_size"),
    Flag("img-size", "int", ABSENT, None, "model.img_size"),
    Flag("in-chans", "int", ABSENT, None, why="images have three channels", same=3),
    Flag("num-classes", "int", ABSENT, None, "data.classes"),
    Flag("nb-classes", "int", None, ABSENT, "data.classes", others=("--nb_classes",)),
    Flag("pretrained", "switch", ABSENT, False, "model.pretrained"),
    Flag("pretrained-path", "text", ABSENT, None, "model.weights, model.new_head"),
    Flag("initial-checkpoint", "text", ABSENT, "", "model.weights"),
    Flag("finetune", "text", "", ABSENT, "model.weights, model.pretrained"),
    Flag("attn-only", "switch", False, ABSENT, "finetune.strategy"),
    Flag("drop", "float", 0.0, 0.0, "model.dropout"),
    Flag("drop-path", "float", 0.1, None, "model.drop_path"),
    Flag("drop-connect", "float", ABSENT, None, "model.drop_path"),
    Flag("drop-block", "float", ABSENT, None, why="no DropBlock"),
    Flag("gp", "text", ABSENT, None, why="pooling is the model's own"),
    Flag("mean", "floats", ABSENT, None, "model.mean"),
    Flag("std", "floats", ABSENT, None, "model.std"),
    Flag("model-kwargs", "texts", ABSENT, None, why="the model is as its name says, but for the fields of --model"),
    Flag("head-init-scale", "float", ABSENT, None, why="the head is initialised as the model has it"),
    Flag("head-init-bias", "float", ABSENT, None, why="the head is initialised as the model has it"),
    Flag("bn-momentum", "float", ABSENT, None, why=BATCH_NORM),
    Flag("bn-eps", "float", ABSENT, None, why=BATCH_NORM),
    Flag("sync-bn", "switch", ABSENT, False, why=BATCH_NORM),
    Flag("dist-bn", "text", ABSENT, "reduce", why=BATCH_NORM),
    Flag("split-bn", "switch", ABSENT, False, why=BATCH_NORM),
    # data
    Flag("data", "text", ABSENT, None, why=f"{AT_RUN}: --data DIR"),
    Flag("data-dir", "text", ABSENT, None, why=f"{AT_RUN}: --data DIR", others=("--data_dir",)),
    Flag("data-path", "text", "", ABSENT, why=f"{AT_RUN}: --data DIR"),
    Flag("data-set", "text", "IMNET", ABSENT, "data.classes, data.images"),
    Flag("inat-category", "text", "name", ABSENT, why="classes are those of the shards", same="name"),
    Flag("dataset", "text", ABSENT, "", "data.classes, data.images", others=("-d",)),
    Flag("dataset-download", "switch", ABSENT, False, why=f"{AT_RUN}: --data torchvision:NAME fetches"),
    Flag("dataset-trust-remote-code", "switch", ABSENT, False, why="nothing that a data set brings is executed"),
    Flag("train-split", "text", ABSENT, "train", why=f"{AT_RUN}: --data.splits", same="train"),
    Flag("val-split", "text", ABSENT, "validation", why=f"{AT_RUN}: --data.splits", same="validation"),
    Flag("train-num-samples", "int", ABSENT, None, "data.images"),
    Flag("val-num-samples", "int", ABSENT, None, why="the index of the data counts them"),
    Flag("class-map", "text", ABSENT, "", why=f"{AT_RUN}: --data.class-names"),
    Flag("input-img-mode", "text", ABSENT, None, why="images are RGB", same="RGB"),
    Flag("input-key", "text", ABSENT, None, why="images are found by their endings"),
    Flag("target-key", "text", ABSENT, None, why=f"{AT_RUN}: --data.label"),
    Flag("target-format", "text", ABSENT, None, why=MULTILABEL),
    Flag("task", "text", ABSENT, None, why=MULTILABEL),
    Flag("multilabel-threshold", "float", ABSENT, None, why=MULTILABEL),
    Flag("epoch-repeats", "float", ABSENT, 0.0, why="an epoch goes through the data once; see --epochs", same=1.0),
    # batch
    Flag("batch-size", "int", 64, 128, "batch, virtual_ranks", others=("-b",)),
    Flag("grad-accum-steps", "int", ABSENT, 1, "batch, virtual_ranks"),
    Flag("validation-batch-size", "int", ABSENT, None, "eval.batch", others=("-vb",)),
    Flag("epochs", "int", 300, 300, "epochs"),
    Flag("seed", "int", 0, 42, "seed"),
    # optimizer and schedule
    Flag("opt", "text", "adamw", "sgd", "optim.name, optim.nesterov"),
    Flag("opt-eps", "float", 1e-8, None, "optim.eps, optim.args"),
    Flag("opt-betas", "floats", None, None, "optim.betas, optim.args"),
    Flag("momentum", "float", 0.9, 0.9, "optim.momentum, optim.args"),
    Flag("weight-decay", "float", 0.05, 2e-5, "optim.weight_decay"),
    Flag("clip-grad", "float", None, None, "optim.clip"),
    Flag("clip-mode", "text", ABSENT, "norm", "optim.clip"),
    Flag("opt-kwargs", "texts", ABSENT, None, "optim.args"),
    Flag("layer-decay", "float", ABSENT, None, "finetune.rates, finetune.decay"),
    Flag("layer-decay-min-scale", "float", ABSENT, 0.0, why="rates by layer have no floor", same=0.0),
    Flag("layer-decay-no-opt-scale", "float", ABSENT, None, why="every layer is trained, however low its rate"),
    Flag("sched", "text", "cosine", "cosine", "optim.schedule"),
    Flag("sched-on-updates", "switch", ABSENT, False, why="the rate changes at every step", same=True),
    Flag("lr", "float", 5e-4, None, "optim.lr, optim.lr_batch"),
    Flag("unscale-lr", "switch", False, ABSENT, "optim.lr_batch"),
    Flag("lr-base", "float", ABSENT, 0.1, "optim.lr"),
    Flag("lr-base-size", "int", ABSENT, 256, "optim.lr_batch"),
    Flag("lr-base-scale", "text", ABSENT, "", "optim.lr, optim.lr_batch"),
    Flag("lr-noise", "floats", None, None, why=NOISE),
    Flag("lr-noise-pct", "float", 0.67, 0.67, why=NOISE),
    Flag("lr-noise-std", "float", 1.0, 1.0, why=NOISE),
    Flag("lr-cycle-mul", "float", ABSENT, 1.0, why=CYCLES, same=1.0),
    Flag("lr-cycle-decay", "float", ABSENT, 0.5, why=CYCLES),
    Flag("lr-cycle-limit", "int", ABSENT, 1, why=CYCLES, same=1),
    Flag("lr-k-decay", "float", ABSENT, 1.0, why=CYCLES, same=1.0),
    Flag("warmup-epochs", "int", 5, 5, "optim.warmup_epochs"),
    Flag("warmup-lr", "float", 1e-6, 1e-5, "optim.warmup_lr"),
    Flag("warmup-prefix", "switch", ABSENT, False, "optim.schedule, epochs"),
    Flag("min-lr", "float", 1e-5, 0.0, "optim.min_lr"),
    Flag("cooldown-epochs", "int", 10, ABSENT, why="main.py stops at --epochs, before it; so do we"),
    Flag("cooldown-epochs", "int", ABSENT, 0, why="a run ends where its cosine does", same=0),
    Flag("decay-epochs", "float", 30.0, 90.0, why=OTHER_SCHEDULE),
    Flag("decay-milestones", "ints", ABSENT, [90, 180, 270], why=OTHER_SCHEDULE),
    Flag("decay-rate", "float", 0.1, 0.1, why=OTHER_SCHEDULE, others=("--dr",)),
    Flag("patience-epochs", "int", 10, 10, why=OTHER_SCHEDULE),
    # augmentation
    Flag("no-aug", "switch", ABSENT, False, "augment.crop, augment.flip, augment.jitter, augment.erase"),
    Flag("train-crop-mode", "text", ABSENT, None, "augment.crop"),
    Flag("scale", "floats", ABSENT, [0.08, 1.0], "augment.scale"),
    Flag("ratio", "floats", ABSENT, [3 / 4, 4 / 3], "augment.ratio"),
    Flag("hflip", "float", ABSENT, 0.5, "augment.flip"),
    Flag("vflip", "float", ABSENT, 0.0, why="images are mirrored left to right alone", same=0.0),
    Flag("color-jitter", "float", 0.3, 0.4, "augment.jitter"),
    Flag("color-jitter-prob", "float", ABSENT, None, why="--augment.jitter changes every view"),
    Flag("grayscale-prob", "float", ABSENT, None, why="grey views are 3-Augment's: --augment.policy three"),
    Flag("gaussian-blur-prob", "float", ABSENT, None, why="blurred views are 3-Augment's: --augment.policy three"),
    Flag("aa", "text", "rand-m9-mstd0.5-inc1", None, "augment.policy, augment.rand_ops, augment.rand_magnitude, "
         "augment.rand_std, augment.rand_prob"),
    Flag("ThreeAugment", "switch", False, ABSENT, "augment.policy, augment.jitter, augment.erase"),
    Flag("src", "switch", False, ABSENT, "augment.crop"),
    Flag("repeated-aug", "switch", True, ABSENT, "data.repeats"),
    Flag("aug-repeats", "float", ABSENT, 0.0, "data.repeats"),
    Flag("aug-splits", "int", ABSENT, 0, why=SPLITS, same=0),
    Flag("jsd-loss", "switch", ABSENT, False, why=SPLITS),
    Flag("train-interpolation", "text", "bicubic", "random", "augment.interpolation"),
    Flag("interpolation", "text", ABSENT, "", why="an image is resized by bicubic interpolation where it is evaluated",
         same="bicubic"),
    Flag("reprob", "float", 0.25, 0.0, "augment.erase"),
    Flag("remode", "text", "pixel", "pixel", why="an erased box has a draw for each pixel", same="pixel"),
    Flag("recount", "int", 1, 1, why="one box of a view is erased", same=1),
    Flag("resplit", "switch", False, False, why=SPLITS),
    # mixing and loss
    Flag("mixup", "float", 0.8, 0.0, "mix.mixup_alpha"),
    Flag("cutmix", "float", 1.0, 0.0, "mix.cutmix_alpha"),
    Flag("cutmix-minmax", "floats", None, None, why="the area of CutMix's box is drawn from --mix.cutmix-alpha"),
    Flag("mixup-prob", "float", 1.0, 1.0, "mix.prob"),
    Flag("mixup-switch-prob", "float", 0.5, 0.5, "mix.switch_prob"),
    Flag("mixup-mode", "text", "batch", "batch", why="the images of a virtual rank are mixed alike", same="batch"),
    Flag("mixup-off-epoch", "int", ABSENT, 0, why="mixing stays on to the end", same=0),
    Flag("smoothing", "float", 0.1, 0.1, "mix.smoothing"),
    Flag("bce-loss", "switch", False, False, "mix.loss"),
    Flag("bce-target-thresh", "float", ABSENT, None, why="with --mix.loss bce every class in the mixture is one",
         same=0.0),
    Flag("bce-sum", "switch", ABSENT, False, why="--mix.loss bce is the mean over classes"),
    Flag("bce-pos-weight", "float", ABSENT, None, why="--mix.loss bce weighs both answers alike"),
    # distillation
    Flag("distillation-type", "text", "none", ABSENT, "distill.loss, distill.kl"),
    Flag("teacher-model", "text", "regnety_160", ABSENT, "distill.teacher"),
    Flag("teacher-path", "text", "", ABSENT, "distill.weights"),
    Flag("distillation-alpha", "float", 0.5, ABSENT, "distill.weight"),
    Flag("distillation-tau", "float", 1.0, ABSENT, "distill.tau"),
    Flag("cosub", "switch", False, ABSENT, why="no co-training of submodels"),
    Flag("kd-model-name", "text", ABSENT, None, why=KD),
    Flag("kd-distill-type", "text", ABSENT, "logit", why=KD),
    Flag("kd-loss-type", "text", ABSENT, "kl", why=KD),
    Flag("kd-temperature", "float", ABSENT, 4.0, why=KD),
    Flag("kd-student-feature-dim", "int", ABSENT, None, why=KD),
    Flag("kd-teacher-feature-dim", "int", ABSENT, None, why=KD),
    Flag("kd-token-distill-type", "text", ABSENT, "soft", why=KD),
    Flag("distill-loss-weight", "float", ABSENT, None, why=KD),
    Flag("task-loss-weight", "float", ABSENT, None, why=KD),
    # average of the weights, evaluation
    Flag("model-ema", "switch", True, False, "ema.decay"),
    Flag("model-ema-decay", "float", 0.99996, 0.9998, "ema.decay"),
    Flag("model-ema-warmup", "switch", ABSENT, False, "ema.warmup"),
    Flag("model-ema-force-cpu", "switch", False, False, why="the average lies where the weights do"),
    Flag("eval-crop-ratio", "float", 0.875, ABSENT, "eval.crop_ratio"),
    Flag("crop-pct", "float", ABSENT, None, "eval.crop_ratio"),
    Flag("dist-eval", "switch", False, ABSENT, why="each image is evaluated once, on any hosting", same=True),
    Flag("train-mode", "switch", True, ABSENT, "model.drop_path, model.dropout"),
    Flag("eval", "switch", False, ABSENT, why="evaluates, and trains nothing"),
    Flag("eval-metric", "text", ABSENT, "top1", why="all metrics are written", same="top1"),
    Flag("tta", "int", ABSENT, 0, why="one view of an image is evaluated", same=0),
    Flag("val-interval", "int", ABSENT, 1, "eval.every_epochs"),
    # precision, speed
    Flag("amp", "switch", ABSENT, False, "precision"),
    Flag("amp-dtype", "text", ABSENT, "float16", "precision"),
    Flag("amp-impl", "text", ABSENT, "native", why="mixed precision is torch's", same="native"),
    Flag("apex-amp", "switch", ABSENT, False, why="mixed precision is torch's"),
    Flag("native-amp", "switch", ABSENT, False, why="mixed precision is torch's", same=True),
    Flag("model-dtype", "text", ABSENT, None, why="weights are float32", same="float32"),
    Flag("channels-last", "switch", ABSENT, False, why="--compute.channels-last is on by default", same=True),
    Flag("grad-checkpointing", "switch", ABSENT, False, "compute.activation_checkpointing"),
    Flag("torchcompile", "text", ABSENT, None, "compute.compile"),
    Flag("torchcompile-mode", "text", ABSENT, None, why="--compute.compile takes torch's default mode"),
    Flag("torchscript", "switch", ABSENT, False, why="--compute.compile on is what a recipe has"),
    Flag("fuser", "text", ABSENT, "", why="--compute.compile on is what a recipe has"),
    Flag("aot-autograd", "switch", ABSENT, False, why="--compute.compile on is what a recipe has"),
    Flag("fast-norm", "switch", ABSENT, False, why="norms are computed as torch does"),
    # hosting, files, logs
    Flag("device", "text", "cuda", "cuda", why=HOSTING),
    Flag("device-modules", "texts", ABSENT, None, why=HOSTING),
    Flag("force-cpu", "switch", ABSENT, False, why=HOSTING),
    Flag("world_size", "int", 1, ABSENT, why=HOSTING),
    Flag("dist_url", "text", "env://", ABSENT, why=HOSTING),
    Flag("local_rank", "int", ABSENT, 0, why=HOSTING, others=("--local-rank",)),
    Flag("no-ddp-bb", "switch", ABSENT, False, why=HOSTING),
    Flag("synchronize-step", "switch", ABSENT, False, why=HOSTING),
    Flag("num_workers", "int", 10, ABSENT, "data.workers"),
    Flag("workers", "int", ABSENT, 4, "data.workers", others=("-j",)),
    Flag("pin-mem", "switch", True, False, why=LOADER),
    Flag("no-prefetcher", "switch", ABSENT, False, why=LOADER),
    Flag("use-multi-epochs-loader", "switch", ABSENT, False, why=LOADER),
    Flag("worker-seeding", "text", ABSENT, "all", why="draws belong to views, not to workers"),
    Flag("output_dir", "text", "", ABSENT, why=f"{AT_RUN}: --output DIR"),
    Flag("output", "text", ABSENT, "", why=f"{AT_RUN}: --output DIR"),
    Flag("experiment", "text", ABSENT, "", why=f"{AT_RUN}: --output DIR"),
    Flag("resume", "text", "", "", why="a run goes on by itself from the checkpoints of its --output"),
    Flag("no-resume-opt", "switch", ABSENT, False, why="a run goes on with its optimizer's state"),
    Flag("start_epoch", "int", 0, ABSENT, why="a run goes on by itself where it was"),
    Flag("start-epoch", "int", ABSENT, None, why="a run goes on by itself where it was"),
    Flag("log-interval", "int", ABSENT, 50, "log.every_steps"),
    Flag("checkpoint-hist", "int", ABSENT, 10, "checkpoint.keep"),
    Flag("recovery-interval", "int", ABSENT, 0, "checkpoint.every_steps"),
    Flag("save-images", "switch", ABSENT, False, why="`vitrail preview` draws what the model sees"),
    Flag("log-wandb", "switch", ABSENT, False, "log.trackers"),
    Flag("wandb-project", "text", ABSENT, None, why=TRACKER),
    Flag("wandb-tags", "texts", ABSENT, None, why=TRACKER),
    Flag("wandb-resume-id", "text", ABSENT, "", why=TRACKER),
    Flag("naflex-loader", "switch", ABSENT, False, why=NAFLEX),
    Flag("naflex-train-seq-lens", "ints", ABSENT, [128, 256, 576, 784, 1024], why=NAFLEX),
    Flag("naflex-max-seq-len", "int", ABSENT, 576, why=NAFLEX),
    Flag("naflex-patch-sizes", "ints", ABSENT, None, why=NAFLEX),
    Flag("naflex-patch-size-probs", "floats", ABSENT, None, why=NAFLEX),
    Flag("naflex-loss-scale", "text", ABSENT, "linear", why=NAFLEX),
    # run_with_submitit.py
    Flag("ngpus", "int", 8, ABSENT, "batch, virtual_ranks", others=("--gpu",)),  # so README_revenge.md
    Flag("nodes", "int", 2, ABSENT, "batch, virtual_ranks"),
    Flag("timeout", "int", 2800, ABSENT, why=SUBMITIT),
    Flag("job_dir", "text", "", ABSENT, why=SUBMITIT),
    Flag("partition", "text", "learnfair", ABSENT, why=SUBMITIT),
    Flag("use_volta32", "switch", False, ABSENT, why=SUBMITIT),
    Flag("comment", "text", "", ABSENT, why=SUBMITIT),
)  # fmt: skip
TURNED_OFF: Final = ("model-ema", "repeated-aug", "train-mode", "pin-mem")  # with --no-..., in main.py
TYPES: Final[Mapping[Kind, Any]] = {
    "int": int, "ints": int, "float": float, "floats": float, "text": str, "texts": str, "shape": int,
}  # fmt: skip
VALUES: Final[Mapping[Kind, int | str]] = {"ints": "+", "floats": "+", "texts": "+", "shape": 3}  # else one


def flags_of(program: Program) -> dict[str, Flag]:
    """Return the flags of a program by name."""
    return {flag.name: flag for flag in FLAGS if getattr(flag, program) is not ABSENT}


def default(flag: Flag, program: Program) -> Any:
    """Return the default that a flag has in a program."""
    return getattr(flag, program)


class Reader(argparse.ArgumentParser):
    """A parser of theirs, whose complaints are ours to make."""

    def error(self, message: str) -> NoReturn:
        """Raise BadRequest with what is wrong with a value."""
        raise BadRequest.of("arguments", f"{self.prog}: {message}.")


def read(program: Program, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what words say to a program, by flag, and the words that belong to none of its flags."""
    parser = Reader(prog=SCRIPT[program], add_help=False, argument_default=argparse.SUPPRESS)
    for flag in flags_of(program).values():
        spellings = list(dict.fromkeys((f"--{flag.name}", *flag.others)))
        if flag.kind == "switch":
            parser.add_argument(*spellings, dest=flag.name, action="store_true")
            if program == "deit" and flag.name in TURNED_OFF:
                parser.add_argument(f"--no-{flag.name}", dest=flag.name, action="store_false")
        elif flag.name == "data":
            parser.add_argument("data", nargs="?", default=argparse.SUPPRESS)
        elif flag.name == "torchcompile":  # its value may be left out
            parser.add_argument(*spellings, dest=flag.name, nargs="?", const="inductor")
        else:
            parser.add_argument(*spellings, dest=flag.name, type=TYPES[flag.kind], nargs=VALUES.get(flag.kind))
    said, others = parser.parse_known_args(words)
    return vars(said), others


def spellings(program: Program) -> Iterator[str]:
    """Yield every way to write a flag of a program."""
    for flag in flags_of(program).values():
        yield from (f"--{flag.name}", *flag.others)
        if program == "deit" and flag.name in TURNED_OFF:
            yield f"--no-{flag.name}"
