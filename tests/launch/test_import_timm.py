"""Command lines of DeiT's README and of timm's documentation become recipes: ours, where we have them."""

import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from launch.import_timm import Imported, imported, source, understood
from launch.recipe_files import load_recipe
from launch.timm_flags import FLAGS, Program, default, flags_of, read
from pipeline.config import FIELDS
from pipeline.fields import flatten
from shards.errors import BadRequest
from tests.running import vitrail
from tests.timm_tables import PAGE, filled

LAUNCH: Final = "python -m torch.distributed.launch --nproc_per_node=4 --use_env"
PUBLISHED: Final = "https://dl.fbaipublicfiles.com/deit"

# the training commands of deit/README_deit.md, and the recipe of ours, with what differs and why
DEIT: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "small": (
        f"{LAUNCH} main.py --model deit_small_patch16_224 --batch-size 256 --data-path /path/to/imagenet "
        "--output_dir /path/to/save",
        "deit_small",
        {"virtual_ranks": 4},  # of 256 images each, not 16 of 64 as for DeiT-B
    ),
    "tiny": (
        f"{LAUNCH} main.py --model deit_tiny_patch16_224 --batch-size 256 --data-path /path/to/imagenet "
        "--output_dir /path/to/save",
        "deit_tiny",
        {"virtual_ranks": 4},
    ),
    "base": (
        "python run_with_submitit.py --model deit_base_patch16_224 --data-path /path/to/imagenet",
        "deit_base",
        {},
    ),
    "distilled": (
        "python run_with_submitit.py --model deit_base_distilled_patch16_224 --distillation-type hard "
        f"--teacher-model regnety_160 --teacher-path {PUBLISHED}/regnety_160-a5fe301d.pth --use_volta32",
        "deit_base_distilled",
        {},
    ),
    "384": (
        f"python run_with_submitit.py --model deit_base_patch16_384 --batch-size 32 --finetune {PUBLISHED}/"
        "deit_base_patch16_224-b5f2ef4d.pth --input-size 384 --use_volta32 --nodes 2 --lr 5e-6 --weight-decay 1e-8 "
        "--epochs 30 --min-lr 5e-6",
        "deit_base_384",
        {"model.drop_path": 0.1},  # the published run had none: it was made in evaluation mode
    ),
}
REVENGE: Final = (  # deit/README_revenge.md, with the blank that it lacks before --bce-loss
    "python run_with_submitit.py --model deit_small_patch16_LS --data-path /path/to/imagenet --batch 256 --lr 4e-3 "
    "--epochs 800 --weight-decay 0.05 --sched cosine --input-size 224 --reprob 0.0 --node 1 --gpu 8 --smoothing 0.0 "
    "--warmup-epochs 5 --drop 0.0 --nb-classes 1000 --seed 0 --opt fusedlamb --warmup-lr 1e-6 --mixup .8 "
    "--drop-path 0.05 --cutmix 1.0 --unscale-lr --repeated-aug --bce-loss  --color-jitter 0.3 --ThreeAugment"
)
# timm's hfdocs/source/training_script.mdx, and some of what each must be here
TIMM: Final[dict[str, tuple[str, dict[str, Any], list[str]]]] = {
    "seresnet34": (
        "./distributed_train.sh 4 --data-dir /data/imagenet --model seresnet34 --sched cosine --epochs 150 "
        "--warmup-epochs 5 --lr 0.4 --reprob 0.5 --remode pixel --batch-size 256 --amp -j 4",
        {"optim.name": "sgd", "optim.nesterov": True, "optim.lr": 0.4, "optim.lr_batch": 0, "batch": 1024,
         "optim.weight_decay": 2e-5, "augment.erase": 0.5, "augment.jitter": 0.4, "augment.rand_ops": 0,
         "data.repeats": 1, "ema.decay": 0.0, "mix.smoothing": 0.1, "virtual_ranks": 4, "epochs": 150},
        ["--amp", "--data-dir", "--train-interpolation"],
    ),
    "seresnext26t": (
        "./distributed_train.sh 2 --data-dir /imagenet/ --model seresnext26t_32x4d --lr 0.1 --warmup-epochs 5 "
        "--epochs 160 --weight-decay 1e-4 --sched cosine --reprob 0.4 --remode pixel -b 112",
        {"batch": 224, "optim.lr": 0.1, "optim.weight_decay": 1e-4, "precision": "fp32", "data.classes": 1000},
        ["--data-dir"],
    ),
    "resnext50": (
        "./distributed_train.sh 8 --data-dir /imagenet --model resnext50_32x4d --lr 0.6 --warmup-epochs 5 --epochs 240 "
        "--weight-decay 1e-4 --sched cosine --reprob 0.4 --recount 3 --remode pixel --aa rand-m7-mstd0.5-inc1 -b 192 "
        "-j 6 --amp --dist-bn reduce",
        {"batch": 1536, "virtual_ranks": 8, "augment.rand_ops": 2, "augment.rand_magnitude": 7.0,
         "augment.rand_std": 0.5, "augment.jitter": 0.0, "data.workers": 6, "eval.crop_ratio": 0.95},
        ["--recount", "--dist-bn"],
    ),
    "efficientnet_b2": (
        "./distributed_train.sh 2 --data-dir /imagenet/ --model efficientnet_b2 -b 128 --sched step --epochs 450 "
        "--decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 -j 8 --warmup-lr 1e-6 --weight-decay 1e-5 "
        "--drop 0.3 --drop-path 0.2 --model-ema --model-ema-decay 0.9999 --aa rand-m9-mstd0.5 --remode pixel "
        "--reprob 0.2 --amp --lr .016",
        {"optim.name": "rmsproptf", "optim.args": ["eps=0.001", "momentum=0.9"],
         "ema.decay": 0.9999, "model.dropout": 0.3, "model.drop_path": 0.2, "model.img_size": 256},
        ["--sched", "--decay-epochs", "--decay-rate", "--aa"],
    ),
}  # fmt: skip


def recipe_of(text: str, gpus: int = 0) -> Imported:
    """Return the recipe of a command line."""
    return imported(understood(text, gpus), "mine")


def values(made: Imported) -> dict[str, Any]:
    """Return the values of a recipe by field."""
    return flatten(made.recipe)


@pytest.mark.parametrize("name", DEIT)
def test_a_command_of_deits_readme_is_our_recipe(name: str) -> None:
    text, ours, differs = DEIT[name]
    made = recipe_of(text)
    assert (made.base, made.differs) == (ours, differs)
    expected = flatten(load_recipe(ours)) | differs | {"name": "mine"}
    assert values(made) == expected


def test_a_command_of_deit3s_readme_is_our_recipe_but_for_the_evaluation_it_does_not_say() -> None:
    made = recipe_of(REVENGE)
    assert (made.base, made.differs) == ("deit3_small", {"eval.crop_ratio": 0.875})
    with pytest.raises(BadRequest, match="--repeated-aug--bce-loss is known to neither timm nor DeiT; did you mean"):
        recipe_of(REVENGE.replace("--repeated-aug --bce-loss", "--repeated-aug--bce-loss"))


@pytest.mark.parametrize("name", TIMM)
def test_a_command_of_timms_documentation_is_a_recipe_and_what_it_cannot_be_is_listed(name: str) -> None:
    text, wanted, left = TIMM[name]
    made = recipe_of(text)
    assert {field: values(made)[field] for field in wanted} == wanted
    said = "\n".join(made.translation.left)
    assert [flag for flag in left if flag not in said] == []
    # every flag is a field or on the list
    for flag in understood(text, 0).said:
        assert flags_of("timm")[flag].fields or f"--{flag}" in said, flag


def test_the_file_is_the_recipe_and_says_where_each_value_is_from(tmp_path: Path) -> None:
    for text, *_ in (*DEIT.values(), (REVENGE,), *TIMM.values()):
        made = recipe_of(text)
        path = tmp_path / "mine.py"
        path.write_text(source(made))
        assert load_recipe(str(path)) == made.recipe
        written = path.read_text()
        words = made.translation.words
        assert all(f"# {words[name]}" in written for name in made.differs if name in words)
        assert f"from recipes.{made.base} import RECIPE" in written


def test_the_verb_writes_a_file_and_tells_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail("import-timm", "main.py --model deit_small_patch16_224 --pin-mem", "--gpus", 16).stdout
    assert said.splitlines()[:2] == ["deit_small_patch16_224.py", "deit_small as it is"]
    assert "--pin-mem: the loader's own business" in said
    assert load_recipe("deit_small_patch16_224.py").name == "deit_small_patch16_224"
    again = vitrail("import-timm", "main.py --model nothing_such --epochs 3", "--output", "deit_small_patch16_224.py",
                    code=2).stderr  # fmt: skip
    assert "is there already" in again
    assert "--model nothing_such: no model of timm is called so" in again
    assert "--optim.warmup-epochs 5 is longer than --epochs 3" in again


def test_an_optimizer_s_further_arguments_are_taken_and_those_that_it_has_not_are_named(tmp_path: Path) -> None:
    words = (
        "train.py --model vit_tiny_patch16_224 --opt muon --lr 1e-3 --opt-kwargs ns_steps=6 betas=(0.9,0.95) no_such=1"
    )
    made = recipe_of(words)
    assert {"ns_steps=6", "betas=0.9,0.95"} <= set(made.recipe.optim.args)
    assert "muon has no argument no_such" in str(
        made.translation.left["--opt-kwargs ns_steps=6 betas=(0.9,0.95) no_such=1"]
    )
    path = tmp_path / "args.yaml"
    path.write_text(
        "model: vit_tiny_patch16_224\nopt: muon\nlr: 0.001\nopt_kwargs: {ns_steps: 6, betas: [0.9, 0.95]}\n"
    )
    assert recipe_of(str(path)).recipe.optim.args == made.recipe.optim.args
    of_adamw = "train.py --model vit_tiny_patch16_224 --opt adamw --lr 1e-3 --opt-kwargs eps=1e-6"
    assert "has a field of its own" in recipe_of(of_adamw).translation.left["--opt-kwargs eps=1e-6"]


def test_an_args_yaml_is_the_command_line_that_it_was_written_by(tmp_path: Path) -> None:
    text = TIMM["resnext50"][0]
    said, _ = read("timm", text.split()[2:])
    everything = {name.replace("-", "_"): default(flag, "timm") for name, flag in flags_of("timm").items()}
    everything |= {name.replace("-", "_"): value for name, value in said.items()} | {
        "model_kwargs": {},
        "opt_kwargs": {},
    }
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump(everything))
    made = recipe_of(str(path), gpus=8)
    assert made.recipe == recipe_of(text).recipe
    assert "--recount 3" in made.translation.left
    named = recipe_of(f"train.py --config {path} --epochs 7", gpus=8).recipe
    assert named.epochs == 7
    assert named.batch == made.recipe.batch


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", "is no list of `flag: value`"),
        ("epochs: [\n", "cannot be read as YAML"),
        ("epochs: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("epochs: many\n", "epochs: 'many' is no value of --epochs (int)"),
        ("epoch: 3\n", "--epoch is known to neither timm nor DeiT; did you mean --epochs?"),
    ],
)
def test_a_file_that_is_no_args_yaml_says_why(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(content)
    with pytest.raises(BadRequest) as caught:
        recipe_of(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "main.py --modle deit_small_patch16_224 --frobnicate 3",
            "--modle is known to neither timm nor DeiT; did you mean",
        ),
        ("main.py --modle deit_small_patch16_224 --frobnicate 3", "--frobnicate is known to neither timm nor DeiT"),
        ("main.py --aug-repeats 3", "--aug-repeats is a flag of train.py, not of main.py."),
        ("main.py --epochs many", "argument --epochs: invalid int value: 'many'"),
        ("main.py --eval --model deit_base_patch16_224", "--eval trains nothing"),
        ("main.py --data-set CIFAR10", "--data-set CIFAR10: main.py knows IMNET, CIFAR, INAT, INAT19"),
        ("--model deit_base_patch16_224", "whose command is this?"),
        ("main.py --model 'deit", "No closing quotation; copy the whole command"),
        ("train.py --config missing.yaml", "missing.yaml: cannot be read as YAML"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        recipe_of(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("main.py", "data.repeats", 1),  # main.py repeats on several processes alone
        ("main.py --data-set CIFAR --input-size 32", "augment.crop", "padded"),
        ("main.py --no-train-mode", "model.drop_path", 0.0),
        ("main.py --no-model-ema", "ema.decay", 0.0),
        ("main.py --attn-only --finetune w.pth", "finetune.strategy", "attention"),
        (
            "main.py --model deit_small_distilled_patch16_224 --distillation-type soft --distillation-tau 3",
            "distill.kl",
            "code",
        ),
        ("train.py --model vit_small_patch16_224", "model.mean", [0.5, 0.5, 0.5]),
        ("train.py --opt adamw", "optim.lr", 0.1 * 2**-0.5),  # the base rate, by the root of 128 / 256
        ("train.py", "optim.lr_batch", 256),
        ("train.py --grad-accum-steps 4", "virtual_ranks", 4),
        ("train.py --warmup-prefix --epochs 10", "epochs", 15),
        ("train.py --opt lamb --lr 5e-3", "optim.eps", 1e-6),
        ("train.py --opt momentum", "optim.nesterov", False),
        ("train.py --layer-decay 0.75", "finetune.decay", 0.75),
        ("train.py --amp --amp-dtype bfloat16", "precision", "bf16"),
        ("train.py --aa original", "augment.policy", "auto"),
        ("train.py --no-aug", "augment.crop", "whole"),
        ("train.py --dataset torch/cifar10 --img-size 32", "data.classes", 10),
        ("torchrun --nnodes 2 --nproc-per-node 8 train.py", "virtual_ranks", 16),
        ("train.py --input-size 3 160 160 /imagenet --model vit_small_patch16_224", "model.img_size", 160),
        ("train.py --log-wandb", "log.trackers", "tensorboard,wandb"),
    ],
)
def test_a_flag_becomes_the_field_that_does_the_same(text: str, field: str, value: Any) -> None:
    assert values(recipe_of(text))[field] == pytest.approx(value)


def test_what_others_wrote_is_never_executed(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')"
    evil = f'x"""\n{trap}\n"""\\'
    text = ["train.py", "--initial-checkpoint", evil, "--experiment", evil, "--model", "resnet18", "--gp", f"#\n{trap}"]
    path = tmp_path / "args.yaml"
    path.write_text(
        yaml.safe_dump({"model": "resnet18", "initial_checkpoint": evil, "experiment": evil, "gp": f"\n{trap}"})
    )
    for said in (shlex.join(text), str(path)):
        made = recipe_of(said)
        (tmp_path / "mine.py").write_text(source(made))
        assert load_recipe(str(tmp_path / "mine.py")).model.weights == evil
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("program", ["deit", "timm"])
def test_every_flag_is_a_field_or_has_a_reason(program: Program) -> None:
    for flag in FLAGS:
        assert bool(flag.fields) != bool(flag.why), flag
        for name in flag.fields.split(", ") if flag.fields else []:
            assert name in FIELDS, flag
    for name, flag in flags_of(program).items():
        assert name == flag.name
        value = default(flag, program)
        assert value is None or isinstance(value, bool) == (flag.kind == "switch"), flag


def test_the_page_has_every_flag_as_it_is() -> None:
    text = PAGE.read_text()
    assert filled(text) == text, "write it anew: python -m tests.timm_tables"
