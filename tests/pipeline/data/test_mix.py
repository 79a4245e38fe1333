from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.data import mixup
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

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
    return draw_mixing(settings, seed=0, step=step, virtual_rank=rank, copies=copies, size=16)


def channels_last(*shape: int) -> Tensor:
    """Return images as the device has them, for instance [B, 3, H, W]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def plainly_mixed(images: Tensor, mixing: Mixing) -> Tensor:
    """Return what mixing is: image by image, by slices."""
    mixed = images.clone()
    for image, lam, (top, left, height, width), partner in zip(
        mixed, mixing.lam.tolist(), mixing.boxes.tolist(), images[mixing.partner], strict=True
    ):
        if height:
            box = (..., slice(top, top + height), slice(left, left + width))
            image[box] = partner[box]
        else:
            image.mul_(lam).add_(partner * (1 - lam))
    return mixed


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
    boxes = torch.tensor([[3, 2, 8, 7] if cutmix else [0, 0, 0, 0]] * 8)
    mixing = Mixing(torch.full((8,), corrected), boxes, torch.arange(8).flip(0))
    targets = mix_labels(labels, mixing, classes=4, smoothing=0.1)
    ours = objective(
        heads(net, mix_images(images.contiguous(memory_format=torch.channels_last), mixing)), targets, None, TINY
    ).mean()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


def test_nobody_is_his_own_partner_and_everybody_is_a_partner() -> None:
    for step in range(50):
        partner = draw(step).partner
        assert sorted(partner.tolist()) == list(range(8))
        assert (partner != torch.arange(8)).all()


def test_half_of_the_batches_are_cut_and_lambda_is_the_area_left() -> None:
    mixings = [draw(step) for step in range(400)]
    for lam, boxes, _ in mixings:
        assert len(lam.unique()) == len(boxes.unique(dim=0)) == 1
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
    assert all(torch.equal(here, there) for here, there in zip(again, first, strict=True))
    assert other.lam[0] != first.lam[0]


def test_no_two_views_of_an_image_are_mixed_alike_or_with_each_other() -> None:
    """DeiT's sampler has the copies of an image in different batches, each with its own draw (deit/samplers.py)."""
    order = order_of(DEIT_SMALL, (2000,) * 4)
    for step, rank in product(range(order.steps_per_epoch), range(4)):
        _, _, samples, copies = order.views(step, rank)
        lam, boxes, partner = (part.numpy() for part in draw(step, rank=rank, copies=copies))
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
    images = channels_last(4, 3, 8, 8)
    mixed = mix_images(images.clone(), mixing)
    assert torch.equal(mixed[1:3], images[1:3])
    assert not torch.allclose(mixed[0], images[0])
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(mix_labels(labels, mixing, classes=4, smoothing=0.0)[1:3], torch.eye(4)[1:3])


def test_each_view_is_mixed_by_a_lambda_or_in_a_box_of_its_own() -> None:
    images = channels_last(4, 3, 6, 6)
    mixing = Mixing(
        torch.tensor([0.25, 0.5, 1.0, 0.5]),
        torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 3, 6]]),
        torch.tensor([1, 2, 3, 0]),
    )
    mixed = mix_images(images.clone(), mixing)
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    expected = images.clone()
    expected[1, :, 1:4, 2:] = images[2, :, 1:4, 2:]
    expected[3, :, :3] = images[0, :, :3]
    assert torch.equal(mixed[1:], expected[1:])


@pytest.mark.parametrize("size", [1, 5, 16, 31])
def test_a_batch_is_mixed_as_slices_would_mix_it(size: int) -> None:
    images, kinds = channels_last(9, 3, size, size), set()
    for step in range(30):
        mixing = draw_mixing(DEIT, seed=0, step=step, virtual_rank=0, copies=np.arange(9) % 3, size=size)
        mixed = mix_images(images.clone(), mixing)
        torch.testing.assert_close(mixed, plainly_mixed(images, mixing), rtol=0, atol=1e-6)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        kinds.add(tuple((mixing.boxes[:3, 2] > 0).tolist()))
    assert size == 1 or len(kinds) > 4  # copies of both kinds side by side


def test_virtual_ranks_are_mixed_together_as_they_are_one_by_one() -> None:
    images, copies = channels_last(12, 3, 16, 16), np.arange(6) % 3
    drawn = [draw(5, rank=rank, copies=copies) for rank in (0, 1)]
    alone = [mix_images(images[6 * rank :][:6].clone(), mixing) for rank, mixing in enumerate(drawn)]
    joined = Mixing(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
    joined.partner[6:] += 6
    assert torch.equal(mix_images(images.clone(), joined), torch.cat(alone))


def test_with_both_alphas_zero_nothing_is_mixed() -> None:
    settings = Mix(smoothing=0.1)
    drawn = draw(0, settings=settings)
    assert [part.tolist() for part in drawn] == [[1.0] * 8, [[0] * 4] * 8, list(range(8))]
    images = channels_last(2, 3, 6, 6)
    assert mix_images(images, None) is images
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
