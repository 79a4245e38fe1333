"""Losses, the teacher, and the models around distillation; runs with a teacher are in test_store.py."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from pipeline.config import Distill, Model, Recipe
from pipeline.model.batch_norm import BatchNorms
from pipeline.model.build import build_model, build_student
from pipeline.model.student import Student, fuse, heads
from pipeline.model.weights import load_weights
from pipeline.objective import agreement, objective
from pipeline.teacher.outputs import from_records, to_records
from pipeline.teacher.teacher import Input, Teacher, build_teacher, check_teacher
from shards.errors import BadRequest
from tests.tiny import TINY

RNG = np.random.default_rng(0)
LABEL_LOGITS, TAUGHT_LOGITS, TEACHER = (RNG.normal(size=(6, 7)) * 3 for _ in range(3))
TARGETS = RNG.dirichlet(np.ones(7), size=6)
TWO = torch.from_numpy(np.stack([LABEL_LOGITS, TAUGHT_LOGITS]))


def of(distill: Distill) -> Recipe:
    return replace(TINY, distill=distill)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_hard_loss_is_equation_3() -> None:
    answers = TEACHER.argmax(1)
    by_hand = 0.5 * -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1)
    by_hand += 0.5 * -np.log(softmax(TAUGHT_LOGITS)[np.arange(6), answers])
    ours = objective(TWO, torch.from_numpy(TARGETS), torch.from_numpy(answers), of(Distill(loss="hard", weight=0.5)))
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)


@pytest.mark.parametrize("token", [True, False])
def test_the_soft_loss_is_equation_2(token: bool) -> None:
    tau, lam = 3.0, 0.1
    logits = TWO if token else TWO[:1]
    student = softmax(logits[-1].numpy() / tau)
    teacher = softmax(TEACHER / tau)
    divergence = (teacher * np.log(teacher / student)).sum(1)
    by_hand = (1 - lam) * -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1) + lam * tau**2 * divergence
    settings = Distill(loss="soft", weight=lam, tau=tau, token=token)
    ours = objective(logits, torch.from_numpy(TARGETS), torch.from_numpy(TEACHER), of(settings))
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)


def test_the_soft_loss_of_the_official_code_is_summed_and_divided_by_batch_and_classes() -> None:
    tau, alpha = 2.0, 0.5
    student, teacher = np.log(softmax(TAUGHT_LOGITS / tau)), np.log(softmax(TEACHER / tau))
    # deit/losses.py: F.kl_div(..., reduction="sum", log_target=True) * T * T / outputs_kd.numel()
    code = (np.exp(teacher) * (teacher - student)).sum() * tau * tau / TAUGHT_LOGITS.size
    base = -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1).mean()
    settings = Distill(loss="soft", kl="code", weight=alpha, tau=tau)
    ours = objective(TWO, torch.from_numpy(TARGETS), torch.from_numpy(TEACHER), of(settings)).mean()
    assert float(ours) == pytest.approx(base * (1 - alpha) + code * alpha, abs=1e-6)


def test_without_outputs_the_loss_is_that_of_the_targets() -> None:
    ours = objective(TWO[:1], torch.from_numpy(TARGETS), None, TINY)
    np.testing.assert_allclose(ours, -(TARGETS * np.log(softmax(LABEL_LOGITS))).sum(1), atol=1e-6)


def test_the_binary_loss_takes_every_mixed_class_as_a_whole_one() -> None:
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    logits = torch.tensor([[[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]]])
    recipe = replace(TINY, mix=replace(TINY.mix, loss="bce", smoothing=0.0))
    expected = nn.BCEWithLogitsLoss()(logits[0], torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(objective(logits, targets, None, recipe).mean(), expected)


def test_agreement_counts_equal_classes() -> None:
    classes = TWO[1].argmax(1)
    assert int(agreement(TWO, classes)) == 6
    assert int(agreement(TWO, (classes + 1) % 7)) == 0
    assert int(agreement(TWO, TWO[1])) == 6


def test_fusion_is_the_papers_or_the_codes() -> None:
    paper = (softmax(LABEL_LOGITS) + softmax(TAUGHT_LOGITS)) / 2
    np.testing.assert_allclose(softmax(fuse(TWO, "paper").numpy()), paper, atol=1e-12)
    np.testing.assert_allclose(fuse(TWO, "code"), (LABEL_LOGITS + TAUGHT_LOGITS) / 2)
    assert torch.equal(fuse(TWO[:1], "paper"), TWO[0])


def test_hard_outputs_come_back_as_they_are() -> None:
    logits = torch.randn(50, 40_000)
    hard = Distill(loss="hard")
    records = to_records(logits, hard).numpy().astype("uint16")
    assert (records > 0).all()
    assert torch.equal(from_records(torch.from_numpy(records.astype("int64")), 40_000, hard), logits.argmax(1))


@pytest.mark.parametrize("top", [1, 3, 7])
def test_soft_outputs_keep_the_top_and_spread_the_rest(top: int) -> None:
    soft = Distill(loss="soft", top=top)
    records = to_records(torch.from_numpy(TEACHER), soft).numpy().astype("uint16")
    assert records.shape == (6, 2 * top)  # 4 bytes a kept class
    back = from_records(torch.from_numpy(records.astype("int64")), 7, soft).exp().numpy()
    expected = softmax(TEACHER)
    order = np.argsort(-expected, 1)
    for row, exact, ranks in zip(back, expected, order, strict=True):
        np.testing.assert_allclose(row[ranks[:top]], exact[ranks[:top]], rtol=1e-3, atol=1e-6)
        assert np.ptp(row[ranks[top:]]) == 0 if top < 7 else True
    np.testing.assert_allclose(back.sum(1), 1, atol=2e-3)


def test_the_teacher_sees_the_same_pixels_at_its_own_size_and_normalisation() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    student = Model(name="deit_tiny_patch16_224", img_size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expects = Input(16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean((2, 3))

    teacher = Teacher(Net(), expects, student)
    teacher((pixels - torch.tensor(student.mean).view(3, 1, 1)) / torch.tensor(student.std).view(3, 1, 1))
    larger = nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    expected = (larger - torch.tensor(expects.mean).view(3, 1, 1)) / torch.tensor(expects.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet20_cifar", num_classes=4).state_dict(), tmp_path / "t.safetensors")
    recipe = replace(TINY, distill=Distill(teacher="resnet20_cifar", weights=str(tmp_path / "t.safetensors")))
    teacher = build_teacher(recipe).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_cifar_resnets_have_the_parameters_of_the_paper(depth: int) -> None:
    # He et al. 2015, table 6, in millions
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
    with torch.device("meta"):
        net = timm.create_model(f"resnet{depth}_cifar")
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count / 1e6 == pytest.approx(millions[depth], abs=0.006 if depth < 110 else 0.05)
    assert len([module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]) == depth


def test_weights_are_taken_out_of_wrappers_and_never_unpickled(tmp_path: Path) -> None:
    source, net = (timm.create_model("resnet20_cifar") for _ in range(2))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}, "best_prec1": 9}
    torch.save(wrapped, tmp_path / "weights.th")
    load_weights(net, str(tmp_path / "weights.th"), "distill.weights")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "owned"),))  # type: ignore[return-value]

    (tmp_path / "evil.th").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    for name in ("evil.th", "evil.pth"):
        with pytest.raises(BadRequest, match="not a file of weights alone"):
            load_weights(net, str(tmp_path / name), "distill.weights")
    assert not (tmp_path / "owned").exists()


def test_position_embeddings_are_resized_for_another_size_of_image(tmp_path: Path) -> None:
    small = replace(TINY.model, name="deit_tiny_distilled_patch16_224")
    save_file(build_model(small, 4, seed=0).state_dict(), tmp_path / "small.safetensors")
    large = build_model(replace(small, img_size=32, weights=str(tmp_path / "small.safetensors")), 4, seed=1)
    assert large.pos_embed.shape == (1, 16 + 2, 32)  # class and distillation token keep theirs
    assert torch.equal(large.pos_embed[:, :2], build_model(small, 4, seed=0).pos_embed[:, :2])


def test_a_student_with_a_token_answers_with_two_heads_in_both_modes() -> None:
    recipe = replace(
        TINY, model=replace(TINY.model, name="deit_tiny_distilled_patch16_224"), distill=Distill(teacher="resnet18")
    )
    net = build_student(recipe)
    images, keys = torch.randn(3, 3, 16, 16), torch.arange(3)
    student = Student(net)
    assert student.train()(images, keys).shape == (2, 3, 4)
    student.eval()
    two = heads(net, images)
    torch.testing.assert_close(two.mean(0), net(images))  # what timm's own model does in evaluation
    assert heads(build_student(TINY).eval(), images).shape == (1, 3, 4)


def test_a_model_without_a_token_is_refused_and_so_is_an_idle_token() -> None:
    with pytest.raises(BadRequest, match="no distillation token"):
        build_student(replace(TINY, distill=Distill(teacher="resnet18")))
    with pytest.raises(BadRequest, match="nobody would teach"):
        build_student(replace(TINY, model=replace(TINY.model, name="deit_tiny_distilled_patch16_224"),
                              distill=Distill(teacher="resnet18", token=False)))  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("resnet18.a1_in1k", "knows 1000 classes, the recipe has 4"),
        ("torchvision:resnet18", "knows 1000 classes, the recipe has 4"),
        ("resnet20_cifar", "no weights are published"),
        ("local-dir:/nowhere", "not the folder of a finished run"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named_before_it_is_built(teacher: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_teacher(replace(TINY, distill=Distill(teacher=teacher)))


def test_a_torchvision_teacher_takes_what_its_weights_take(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.save(shufflenet_v2_x0_5(num_classes=4).state_dict(), tmp_path / "net.pth")
    recipe = replace(TINY, distill=Distill(teacher="torchvision:shufflenet_v2_x0_5", weights=f"{tmp_path}/net.pth"))
    check_teacher(recipe)
    teacher = build_teacher(recipe)
    assert (teacher.size, teacher.same_colours) == (224, True)
    assert teacher(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_batch_norm_moves_by_the_mean_over_virtual_ranks() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2)).train()
    batches = torch.randn(3, 4, 2, 5, 5)
    norms = BatchNorms(net)
    with norms.over_virtual_ranks(Accelerator(cpu=True), 3, 3):
        for turn, batch in enumerate(batches):
            norms.take_turn(turn)
            net(batch)
    means = batches.mean((1, 3, 4)).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, 0.1 * means)
    torch.testing.assert_close(net[0].running_var, 0.9 + 0.1 * variances)
    assert (int(net[0].num_batches_tracked), net[0].momentum) == (1, 0.1)
