import numpy as np
import pytest
import torch
from timm.data import mixup
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy

from pipeline.config import Mix
from pipeline.data.mix import Mixing, draw_mixing, mix_images, mix_labels
from pipeline.model.build import build_model
from pipeline.model.student import heads
from pipeline.objective import objective
from tests.tiny import TINY

DEIT = Mix(mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1)


def draw(step: int, *, settings: Mix = DEIT, rank: int = 0) -> Mixing | None:
    return draw_mixing(settings, seed=0, step=step, virtual_rank=rank, batch=8, size=16)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cutmix", [False, True])
def test_the_loss_of_a_step_is_that_of_timm(lam: float, cutmix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(4, (8,), generator=generator)
    net = build_model(TINY.model, 4, seed=0).eval()

    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    box = (3, 11, 2, 9)
    corrected = 1 - 8 * 7 / 256 if cutmix else lam
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (corrected, cutmix))
    monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", lambda *_, **__: (box, corrected))
    mixed, targets = theirs(images.clone(), labels)
    expected = SoftTargetCrossEntropy()(net(mixed), targets)

    # timm's partner is the batch in reverse
    mixing = Mixing(corrected, box if cutmix else None, np.arange(8)[::-1].copy())
    targets = mix_labels(labels, mixing, classes=4, smoothing=0.1)
    ours = objective(heads(net, mix_images(images, mixing)), targets, None, TINY).mean()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


def test_nobody_is_his_own_partner_and_everybody_is_a_partner() -> None:
    for step in range(50):
        mixing = draw(step)
        assert mixing
        assert sorted(mixing.partner.tolist()) == list(range(8))
        assert (mixing.partner != np.arange(8)).all()


def test_half_of_the_batches_are_cut_and_lambda_is_the_area_left() -> None:
    mixings = [draw(step) for step in range(400)]
    cut = [mixing for mixing in mixings if mixing and mixing.box]
    assert 160 < len(cut) < 240
    for lam, (top, bottom, left, right), _ in cut:
        assert lam == 1 - (bottom - top) * (right - left) / 256
    # Beta(0.8, 0.8) has mean 1/2 and standard deviation 0.31
    lams = [mixing.lam for mixing in mixings if mixing and not mixing.box]
    assert np.mean(lams) == pytest.approx(0.5, abs=0.08)
    assert np.std(lams) == pytest.approx(0.31, abs=0.05)


def test_mixing_depends_on_step_and_virtual_rank_alone() -> None:
    again, first = draw(3), draw(3)
    assert first
    assert again
    assert (again.lam, again.box, again.partner.tolist()) == (first.lam, first.box, first.partner.tolist())
    other = draw(3, rank=1)
    assert other
    assert other.lam != first.lam


def test_with_both_alphas_zero_nothing_is_mixed() -> None:
    assert draw(0, settings=Mix(smoothing=0.1)) is None
    labels = torch.tensor([0, 3])
    assert torch.allclose(mix_labels(labels, None, classes=4, smoothing=0.1)[1], torch.tensor([0.025] * 3 + [0.925]))


@pytest.mark.parametrize("settings", [Mix(mixup_alpha=0.2), Mix(cutmix_alpha=1.0)])
def test_one_alpha_alone_is_used_always(settings: Mix) -> None:
    boxes = {(mixing := draw(step, settings=settings)) and mixing.box is not None for step in range(40)}
    assert boxes == {bool(settings.cutmix_alpha)}
