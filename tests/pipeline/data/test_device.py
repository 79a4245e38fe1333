"""What the device does to a batch: normalising as torchvision does, and erasing by the key of a view."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize as torchvisions_normalize
from torchvision.transforms.functional import to_tensor

from pipeline.data.device import erase, normalize
from tests.tiny import TINY

CPU = torch.device("cpu")
KEYS = torch.tensor([11, -(2**62), 13, 2**63 - 1])
BOXES = np.array([[2, 3, 5, 4], [0, 0, 0, 0], [0, 6, 8, 2], [7, 0, 1, 8]])  # top, left, height, width


def images(count: int = 4, size: int = 8) -> Tensor:
    """Return images in which no two numbers are equal, none of which noise would hit."""
    return torch.arange(count * 3 * size * size, dtype=torch.float32).view(count, 3, size, size) + 1000


def test_normalised_images_are_those_of_torchvision() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    theirs = torchvisions_normalize(to_tensor(pixels[0].numpy()), list(TINY.model.mean), list(TINY.model.std))
    ours = normalize(pixels, TINY.model, CPU)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs[None], rtol=1e-5, atol=1e-6)


def test_normalising_leaves_the_loaders_images_as_they_are() -> None:
    pixels = torch.full((1, 2, 2, 3), 7, dtype=torch.uint8)
    normalize(pixels, TINY.model, CPU)
    assert pixels.unique().tolist() == [7]


def test_erasing_fills_exactly_the_box_of_each_image() -> None:
    before = images()
    after = erase(before.clone(), BOXES, KEYS)
    inside = torch.zeros(4, 8, 8, dtype=torch.bool)
    for number, (top, left, height, width) in enumerate(BOXES.tolist()):
        inside[number, top : top + height, left : left + width] = True
    changed = after != before
    assert torch.equal(changed, inside[:, None].expand(4, 3, 8, 8))
    assert inside.sum(dim=(1, 2)).tolist() == [20, 0, 16, 8]


def test_erasing_fills_with_normal_noise() -> None:
    box = np.array([[0, 0, 64, 64]])
    noise = erase(torch.zeros(1, 3, 64, 64), box, KEYS[:1])
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_erasing_differs_between_keys() -> None:
    box = np.array([[1, 1, 6, 6]] * 4)
    noise = erase(torch.zeros(4, 3, 8, 8), box, KEYS)[:, :, 1:7, 1:7].flatten(1)
    equal = (noise[:, None] == noise).float().mean(2)
    assert torch.equal(equal, torch.eye(4))


@pytest.mark.parametrize("slots", [[2], [3, 2], [1, 2], [2, 0, 3, 1]])
def test_a_view_is_erased_the_same_in_any_batch(slots: list[int]) -> None:
    whole = erase(images(), BOXES, KEYS)
    part = erase(images()[slots], BOXES[slots], KEYS[slots])
    assert torch.equal(part, whole[slots])


def test_a_batch_without_a_box_is_left_as_it_is() -> None:
    before = images()
    assert torch.equal(erase(before.clone(), np.zeros((4, 4), dtype=np.int64), KEYS), before)
