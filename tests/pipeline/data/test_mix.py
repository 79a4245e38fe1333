from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.data import mixup
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy

from pipeline.config import Mix
from pipeline.data.mix import Mixing, draw_mixing, mix_images, mix_labels
from pipeline.data.order import order_of
from pipeline.model.build import build_model
from pipeline.model.student import heads
from pipeline.objective import objective
from recipes.deit_small import RECIPE as DEIT_SMALL
from tests.tiny import TINY

DEIT = Mix(mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1)


ONE_COPY = np.zeros(8, dtype=np.int64)


def draw(step: int, *, settings: Mix = DEIT, rank: int = 0, copies: NDArray[np.int64] = ONE_COPY) -> Mixing:
    drawn = draw_mixing(settings, seed=0, step=step, virtual_rank=rank, copies=copies, size=16)
    assert drawn
    return drawn


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cutmix", [False, True])
def test_the_loss_of_a_step_is_that_of_timm(lam: float, cutmix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(4, (8,), generator=generator)
    net = build_model(TINY.model, 4, seed=0).eval()

    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    box = (3, 11, 2, 9)  # top, bottom, left, right
    corrected = 1 - 8 * 7 / 256 if cutmix else lam
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (corrected, cutmix))
    monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", lambda *_, **__: (box, corrected))
    mixed, targets = theirs(images.clone(), labels)
    expected = SoftTargetCrossEntropy()(net(mixed), targets)

    # timm's partner is the batch in reverse
    boxes = np.array([[3, 2, 8, 7] if cutmix else [0, 0, 0, 0]] * 8)
    mixing = Mixing(np.full(8, corrected, np.float32), boxes, np.arange(8)[::-1].copy())
    targets = mix_labels(labels, mixing, classes=4, smoothing=0.1)
    ours = objective(heads(net, mix_images(images, mixing)), targets, None, TINY).mean()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


def test_nobody_is_his_own_partner_and_everybody_is_a_partner() -> None:
    for step in range(50):
        partner = draw(step).partner
        assert sorted(partner.tolist()) == list(range(8))
        assert (partner != np.arange(8)).all()


def test_half_of_the_batches_are_cut_and_lambda_is_the_area_left() -> None:
    mixings = [draw(step) for step in range(400)]
    for lam, boxes, _ in mixings:
        assert len(set(lam.tolist())) == len(np.unique(boxes, axis=0)) == 1
    cut = [mixing for mixing in mixings if mixing.boxes.any()]
    assert 150 < len(cut) < 240  # less those of no area
    for lam, boxes, _ in cut:
        assert lam[0] == 1 - boxes[0, 2] * boxes[0, 3] / 256
    # Beta(0.8, 0.8) has mean 1/2 and standard deviation 0.31
    lams = [mixing.lam[0] for mixing in mixings if not mixing.boxes.any() and mixing.lam[0] < 1]
    assert np.mean(lams) == pytest.approx(0.5, abs=0.08)
    assert np.std(lams) == pytest.approx(0.31, abs=0.05)


def test_mixing_depends_on_step_and_virtual_rank_alone() -> None:
    again, first, other = draw(3), draw(3), draw(3, rank=1)
    assert all(np.array_equal(here, there) for here, there in zip(again, first, strict=True))
    assert other.lam[0] != first.lam[0]


def test_no_two_views_of_an_image_are_mixed_alike_or_with_each_other() -> None:
    """DeiT's sampler has the copies of an image in different batches, each with its own draw (deit/samplers.py)."""
    order = order_of(DEIT_SMALL, (2000,) * 4)
    for step, rank in product(range(order.steps_per_epoch), range(4)):
        _, _, samples, copies = order.views(step, rank)
        lam, boxes, partner = draw(step, rank=rank, copies=copies)
        assert sorted(partner.tolist()) == list(range(64))
        assert (samples[partner] != samples).all()
        assert np.array_equal(copies[partner], copies)
        draws = np.column_stack([lam, boxes])
        drawn = [set(map(tuple, draws[copies == copy].tolist())) for copy in range(3)]
        assert [len(group) for group in drawn] == [1, 1, 1]
        mixed = [draw for (draw,) in drawn if draw[0] < 1]  # a box may have no area
        assert len(set(mixed)) == len(mixed)


def test_a_view_without_another_of_its_copy_is_left_as_it_is() -> None:
    mixing = draw(4, settings=Mix(mixup_alpha=1.0), copies=np.array([1, 2, 0, 1]))
    assert mixing.partner.tolist() == [3, 1, 2, 0]
    images = torch.rand(4, 3, 8, 8)
    mixed = mix_images(images, mixing)
    assert torch.equal(mixed[1:3], images[1:3])
    assert not torch.allclose(mixed[0], images[0])
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(mix_labels(labels, mixing, classes=4, smoothing=0.0)[1:3], torch.eye(4)[1:3])


def test_each_view_is_mixed_by_a_lambda_or_in_a_box_of_its_own() -> None:
    images = torch.rand(4, 3, 6, 6)
    mixing = Mixing(
        np.array([0.25, 0.5, 1.0, 0.5], np.float32),
        np.array([[0, 0, 0, 0], [1, 2, 3, 6], [0, 0, 0, 0], [0, 0, 3, 6]]),
        np.array([1, 2, 3, 0]),
    )
    mixed = mix_images(images, mixing)
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    expected = images.clone()
    expected[1, :, 1:4, 2:] = images[2, :, 1:4, 2:]
    expected[3, :, :3] = images[0, :, :3]
    assert torch.equal(mixed[1:], expected[1:])


def test_with_both_alphas_zero_nothing_is_mixed() -> None:
    settings = Mix(smoothing=0.1)
    assert draw_mixing(settings, seed=0, step=0, virtual_rank=0, copies=ONE_COPY, size=16) is None
    labels = torch.tensor([0, 3])
    assert torch.allclose(mix_labels(labels, None, classes=4, smoothing=0.1)[1], torch.tensor([0.025] * 3 + [0.925]))


def test_a_batch_is_mixed_with_the_probability_of_the_settings() -> None:
    lams = [draw(step, settings=Mix(mixup_alpha=1.0, prob=0.25)).lam for step in range(400)]
    assert 70 < sum(bool((lam < 1).all()) for lam in lams) < 130
    assert all((lam == lam[0]).all() for lam in lams)


@pytest.mark.parametrize("settings", [Mix(mixup_alpha=0.2), Mix(cutmix_alpha=1.0)])
def test_one_alpha_alone_is_used_always(settings: Mix) -> None:
    cut = {bool(mixing.boxes.any()) for step in range(40) if (mixing := draw(step, settings=settings)).lam[0] < 1}
    assert cut == {bool(settings.cutmix_alpha)}
