"""What `make reproduce` runs: the claims of the papers, at sizes for two cores.

Numbers: 32 px, batches of 128 or less.  Sources of the claims are named with them.
"""

from dataclasses import dataclass
from typing import Final

SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """Runs of a recipe; `{name}` in the flags is the folder of another run."""

    name: str
    recipe: str
    flags: str
    data: str = "cifar10"
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Shortfall:
    """How far rows lie below the best of them, on average: what an untuned rate costs."""

    name: str
    of: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """That some rows together are better than others; `row@N` is a row after N epochs, `row EMA` its average."""

    source: str
    says: str
    better: tuple[str, ...]
    worse: tuple[str, ...]


@dataclass(frozen=True)
class Flat:
    """That a row gains less than a point since some epoch."""

    source: str
    says: str
    row: str
    since: int


@dataclass(frozen=True)
class AtLeast:
    """That the only run of a row is at least so good, in per cent: what a table is about needs it."""

    source: str
    says: str
    row: str
    bound: float


@dataclass(frozen=True)
class Figure:
    """That a row reaches what somebody published, in per cent."""

    source: str
    says: str
    row: str
    published: float


@dataclass(frozen=True)
class Table:
    """Rows that are compared with each other, with columns for what they had reached `after` some epochs."""

    title: str
    text: str
    rows: tuple[Row | Shortfall, ...]
    claims: tuple[Claim | Figure | Flat | AtLeast, ...]
    after: tuple[int, ...] = ()


SCRATCH: Final = Table(
    title="A small ViT from scratch",
    text="The tutorial's set-up as it is: 5,000 images, ten epochs, no augmentation. It names no split for its figure.",
    rows=(Row("vit-small", "vit_cifar10_small", "--eval.every-epochs 0"),),
    claims=(Figure("tutorial", "38.7 %", "vit-small", 38.7),),
)

STEM: Final = (
    "--model.patch-size 8 --mix.prob 0 --optim.warmup-epochs 0.5 --ema.decay 0 "
    "--eval.batch 500 --batch 128 --virtual-ranks 1"
)
PATCHIFY, CONV = ("vitp_cifar10", f"{STEM} --model.depth 4"), ("vitc_cifar10", f"{STEM} --model.depth 3")
SGD: Final = (
    "--optim.name sgd --optim.nesterov --optim.lr 0.12 --optim.weight-decay 1.3e-5"  # Table 4: 1.9 for a batch of 2048
)
GRID: Final = tuple((rate, decay) for rate in ("2.5e-4", "1e-3", "4e-3") for decay in ("0.06", "0.24"))


def grid(stem: str, recipe: str, flags: str) -> tuple[Row, ...]:
    """Return the rows of a stem at all rates and decays."""
    short = f"{flags} --data.subset 6000 --epochs 2 --eval.every-epochs 0"
    return tuple(
        Row(f"{stem} {rate} {decay}", recipe, f"{short} --optim.lr {rate} --optim.weight-decay {decay}")
        for rate, decay in GRID
    )


STEMS: Final = Table(
    title="Convolutional stem",
    text="""Width 128, patch 8: four blocks behind the usual patches, or three behind three 3x3 convolutions of stride
2. 10,000 images of CIFAR-10, AutoAugment, no mixing. The grid of rates and weight decays takes two epochs of 6,000; a
stem's *shortfall* is how far its six settings lie below the best one, on average.""",
    rows=(
        Row("patchify", *PATCHIFY[:1], f"{PATCHIFY[1]} --data.subset 10000 --epochs 4"),
        Row("conv", *CONV[:1], f"{CONV[1]} --data.subset 10000 --epochs 4"),
        Row("patchify SGD", *PATCHIFY[:1], f"{PATCHIFY[1]} --data.subset 10000 --epochs 4 {SGD}"),
        Row("conv SGD", *CONV[:1], f"{CONV[1]} --data.subset 10000 --epochs 4 {SGD}"),
        *grid("patchify", *PATCHIFY),
        *grid("conv", *CONV),
        Shortfall("patchify shortfall", tuple(row.name for row in grid("patchify", *PATCHIFY))),
        Shortfall("conv shortfall", tuple(row.name for row in grid("conv", *CONV))),
    ),
    claims=(
        Claim("Early Convolutions, 5.1", "a convolutional stem learns faster: after 1 epoch", ("conv@1",),
              ("patchify@1",)),
        Claim("Early Convolutions, 5.1", "after 2 epochs", ("conv@2",), ("patchify@2",)),
        Claim("Early Convolutions, Table 2", "it is better in the end", ("conv",), ("patchify",)),
        Claim("Early Convolutions, 5.2", "it narrows AdamW's lead over SGD", ("patchify", "conv SGD"),
              ("patchify SGD", "conv")),
        Claim("Early Convolutions, 5.3", "it needs less tuning: its shortfall is smaller", ("patchify shortfall",),
              ("conv shortfall",)),
    ),
    after=(1, 2, 3),
)  # fmt: skip

VIT12: Final = (
    "--model.name deit_tiny_patch16_224 --model.img-size 32 --model.patch-size 8 --model.width 128 --model.depth 12 "
    "--model.heads 4 --model.mean 0.5 0.5 0.5 --model.std 0.5 0.5 0.5 --augment.crop padded --eval.batch 500 "
    "--virtual-ranks 1"
)
STRATEGIES: Final = ("linear", "partial-1", "full")
FROM_HALF: Final = (
    f"{VIT12} --augment.scale 0.08 1 --model.no-pretrained --model.weights {{pretrained-vit-0}}/model.safetensors"
)
TRANSFER: Final = Table(
    title="Partial fine-tuning",
    text="""A ViT of width 128, 12 blocks and patch 8, trained for four epochs on the first five classes of CIFAR-10,
then fine-tuned: for one epoch on the other five, for ten on 720 flowers of 12 kinds at 32 px. The three seeds are of
the fine-tuning; the pretrained model is one.""",
    rows=(
        Row("pretrained-vit", "deit_cifar10", f"{VIT12} --model.drop-path 0 --data.classes 5 --data.repeats 1 "
            "--data.epoch images --augment.rand-ops 0 --augment.erase 0 --mix.prob 0 --optim.lr-batch 0 --ema.decay 0 "
            "--eval.every-epochs 0 --batch 128 --epochs 4", "first", (0,)),
        *(Row(strategy, "partial_k_cifar10", f"{FROM_HALF} --model.new-head --data.classes 5 "
              f"--finetune.strategy {strategy}", "second") for strategy in STRATEGIES),
        Row("linear, normed", "partial_k_cifar10", f"{FROM_HALF} --model.new-head --data.classes 5 "
            "--finetune.strategy linear --finetune.head-norm", "second"),
        *(Row(f"flowers {strategy}", "partial_k_cifar10", f"{FROM_HALF} --model.new-head --data.classes 12 --batch 32 "
              f"--epochs 10 --eval.every-epochs 0 --finetune.strategy {strategy}", "flowers")
          for strategy in STRATEGIES),
    ),
    claims=(
        Claim("tutorial", "full is better than Partial-1, after an epoch", ("full",), ("partial-1",)),
        Claim("tutorial", "Partial-1, with ten times fewer parameters, is better than linear",
              ("partial-1",), ("linear",)),
        Claim("MAE, A.1", "batch norm before the head helps a linear probe", ("linear, normed",), ("linear",)),
        Claim("tutorial", "full is better than Partial-1, on flowers", ("flowers full",),
              ("flowers partial-1",)),
        Claim("tutorial", "Partial-1 is better than linear, on flowers", ("flowers partial-1",),
              ("flowers linear",)),
    ),
)  # fmt: skip

FLOWERS: Final = (
    "--model.name resnet20_cifar --model.img-size 48 --model.no-pretrained "
    "--model.weights {pretrained-cnn-0}/model.safetensors --model.new-head --data.classes 12 "
    "--data.splits train=train test=test --eval.every-epochs 8"
)
GRADUAL: Final = Table(
    title="Feature extraction, then fine-tuning",
    text="""A ResNet-20, trained for two epochs on CIFAR-10, on 720 flowers of 12 kinds at 48 px, 240 others to test:
its head alone for 24 epochs, or for 16, and then all of it for 8, each part at a third of the next one's rate.""",
    rows=(
        Row("pretrained-cnn", "teacher_cifar10", "--model.name resnet20_cifar --epochs 2 --optim.warmup-epochs 0.5 "
            "--eval.every-epochs 0", seeds=(0,)),
        Row("features", "transfer_flowers", f"{FLOWERS} --finetune.strategy linear --finetune.head-epochs 0 "
            "--optim.lr 0.01 --optim.min-lr 0.01", "flowers"),
        Row("then all", "transfer_flowers", f"{FLOWERS} --finetune.head-lr 0.01 --optim.lr 0.003 "
            "--optim.min-lr 0.003", "flowers"),
    ),
    claims=(
        Claim("guide", "fine-tuning adds accuracy to what it started from", ("then all",),
              ("then all@16",)),
        Claim("guide", "and more than as many epochs of the head alone", ("then all",), ("features",)),
    ),
    after=(8, 16),
)  # fmt: skip

LIGHT: Final = (
    "--model.patch-size 8 --model.depth 3 --data.subset 2000 --data.repeats 1 --augment.rand-ops 0 --mix.prob 0 "
    "--optim.lr-batch 0 --optim.warmup-epochs 5 --eval.every-epochs 20 --eval.batch 500 --batch 128 --virtual-ranks 1 "
    "--epochs 80"
)
RAW: Final = f"{LIGHT} --ema.decay 0"
MIXED: Final = RAW.replace("--mix.prob 0", "--mix.prob 1")
ABLATION: Final = Table(
    title="Each ingredient of DeiT",
    text="""deit_cifar10 with width 128, 3 blocks and patch 8, on 2,000 images of CIFAR-10, 160,000 views: 80 of each
image, where DeiT's 300 epochs show 300. The whole recipe underfits at any budget that fits here (LOG.md, 2026-11-25),
so the rows stand around one that is flat at its end: *light*, the recipe without RandAugment, mixing and repeats. What
Table 8 takes away from the recipe is added here, or taken away, one at a time.""",
    rows=(
        Row("light", "deit_cifar10", f"{LIGHT} --ema.decay 0.9998"),
        Row("SGD", "deit_cifar10", f"{RAW} --optim.name sgd --optim.nesterov --optim.lr 0.1 --optim.weight-decay 1e-4"),
        Row("RandAugment", "deit_cifar10", RAW.replace(" --augment.rand-ops 0", "")),
        Row("AutoAugment", "deit_cifar10", f"{RAW} --augment.policy auto"),
        Row("mixup", "deit_cifar10", f"{MIXED} --mix.cutmix-alpha 0"),
        Row("CutMix", "deit_cifar10", f"{MIXED} --mix.mixup-alpha 0"),
        Row("mixup and CutMix", "deit_cifar10", MIXED),
        Row("no erasing", "deit_cifar10", f"{RAW} --augment.erase 0"),
        Row("no stochastic depth", "deit_cifar10", f"{RAW} --model.drop-path 0"),
        Row("dropout", "deit_cifar10", f"{RAW} --model.dropout 0.1"),
        Row("repeated augmentation", "deit_cifar10", RAW.replace("--data.repeats 1", "--data.repeats 3")),
    ),
    claims=(
        Flat("(the budget)", "light gains less than a point in its last quarter", "light", 60),
        Claim("DeiT, Table 8", "worse with SGD", ("light",), ("SGD",)),
        Claim("DeiT, Table 8", "better with RandAugment", ("RandAugment",), ("light",)),
        Claim("DeiT, Table 8", "better with AutoAugment", ("AutoAugment",), ("light",)),
        Claim("DeiT, Table 8", "RandAugment is better than AutoAugment", ("RandAugment",), ("AutoAugment",)),
        Claim("DeiT, Table 8", "better with mixup", ("mixup",), ("light",)),
        Claim("DeiT, Table 8", "better with CutMix", ("CutMix",), ("light",)),
        Claim("DeiT, Table 8", "better with both", ("mixup and CutMix",), ("light",)),
        Claim("DeiT, Table 8", "both are better than one", ("mixup and CutMix", "mixup and CutMix"),
              ("mixup", "CutMix")),
        Claim("DeiT, Table 8", "worse with no erasing", ("light",), ("no erasing",)),
        Claim("DeiT, Table 8", "worse with no stochastic depth", ("light",), ("no stochastic depth",)),
        Claim("DeiT, Table 8", "worse with dropout", ("light",), ("dropout",)),
        Claim("DeiT, Table 8", "better with repeated augmentation", ("repeated augmentation",), ("light",)),
        Claim("DeiT, Table 8", "the averaged weights are better", ("light EMA",), ("light",)),
    ),
    after=(20, 40, 60),
)  # fmt: skip

PLAIN_VIT: Final = (
    "--data.repeats 1 --data.epoch images --augment.rand-ops 0 --augment.erase 0 --mix.prob 0 --model.drop-path 0 "
    "--optim.lr-batch 0 --ema.decay 0 --eval.every-epochs 0 --eval.batch 500 --batch 128 --virtual-ranks 1 --epochs 8"
)
NO_TOKEN: Final = f"{RAW} --distill.no-token"
DISTILLATION: Final = Table(
    title="Distillation",
    text="""The student *light* of the table above, and the same taught by networks that our own recipes trained on all
50,000 images: a ResNet-20, for 16 epochs and then for 16 more, and, for Table 2, a ViT and the ResNet-20 of two epochs
above. A ViT of more than 85 % would take days of two cores.""",
    rows=(
        Row("teacher, CNN, first", "teacher_cifar10", "--model.name resnet20_cifar --epochs 16 --eval.every-epochs 0",
            seeds=(0,)),
        Row("teacher, CNN", "teacher_cifar10", "--model.name resnet20_cifar --model.weights "
            "{teacher-CNN-first-0}/model.safetensors --optim.weight-decay 5e-4 --epochs 16 --eval.every-epochs 0",
            seeds=(0,)),
        Row("teacher, ViT", "deit_cifar10", PLAIN_VIT, seeds=(0,)),
        Row("soft", "deit_cifar10", f"{NO_TOKEN} --distill.teacher local-dir:{{teacher-CNN-0}} --distill.loss soft "
            "--distill.tau 3 --distill.weight 0.1"),
        Row("hard", "deit_cifar10", f"{NO_TOKEN} --distill.teacher local-dir:{{teacher-CNN-0}}"),
        Row("hard, token", "deit_cifar10_distilled", f"{RAW} --distill.teacher local-dir:{{teacher-CNN-0}}"),
        Row("hard, token, ViT", "deit_cifar10_distilled", f"{RAW} --distill.teacher local-dir:{{teacher-ViT-0}}"),
        Row("hard, token, CNN like the ViT", "deit_cifar10_distilled",
            f"{RAW} --distill.teacher local-dir:{{pretrained-cnn-0}}"),
    ),
    claims=(
        AtLeast("(the teachers)", "the CNN is above 85 %", "teacher, CNN", 85),
        Claim("DeiT, Table 3", "hard distillation is better than none", ("hard",), ("light",)),
        Claim("DeiT, Table 3", "hard distillation is better than soft", ("hard",), ("soft",)),
        Claim("DeiT, Table 3", "soft distillation is better than none; the paper finds it is not", ("soft",),
              ("light",)),
        Claim("DeiT, Table 3", "a distillation token adds a little to hard distillation", ("hard, token",), ("hard",)),
        Claim("DeiT, Table 2", "a CNN teaches better than a ViT that is no better",
              ("hard, token, CNN like the ViT",), ("hard, token, ViT",)),
        Claim("DeiT, Table 2", "a better CNN teaches better", ("hard, token",), ("hard, token, CNN like the ViT",)),
    ),
)  # fmt: skip

DIGITS: Final = Table(
    title="Digits",
    text="""The recipes of the demo as they are, on scikit-learn's 1,797 digits.""",
    rows=(
        Row("digits, CNN", "teacher_digits", "--eval.every-epochs 0", "digits", (0,)),
        Row("digits", "deit_digits", "--eval.every-epochs 0", "digits"),
        Row("digits, distilled", "deit_digits_distilled", "--eval.every-epochs 0 "
            "--distill.teacher local-dir:{digits-CNN-0}", "digits"),
    ),
    claims=(),
)  # fmt: skip

TABLES: Final = (DIGITS, SCRATCH, STEMS, TRANSFER, GRADUAL, ABLATION, DISTILLATION)
