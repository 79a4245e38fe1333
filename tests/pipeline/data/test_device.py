"""What the device does to a batch: normalising as torchvision does, and erasing by the key of a view."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import normalize as torchvisions_normalize
from torchvision.transforms.functional import to_tensor

from pipeline.data.batch import Batch
from pipeline.data.boxes import Boxes
from pipeline.data.device import erase, model_input, normalize, on_device
from pipeline.data.mix import mix_labels
from pipeline.data.record import Records, view_record
from pipeline.randomness import FACTORS, GOLDEN, Purpose
from tests.tiny import TINY

CPU = torch.device("cpu")
KEYS = torch.tensor([11, -(2**62), 13, 2**63 - 1])
BOXES = np.array([[2, 3, 5, 4], [0, 0, 0, 0], [0, 6, 8, 2], [7, 0, 1, 8]])  # top, left, height, width


def boxed(sides: NDArray[np.int64]) -> Boxes:
    return Boxes.counted(torch.from_numpy(sides), sides)


def images(count: int = 4, size: int = 8) -> Tensor:
    """Return images in which no two numbers are equal, none of which noise would hit."""
    return torch.arange(count * 3 * size * size, dtype=torch.float32).view(count, 3, size, size) + 1000


def test_normalised_images_are_those_of_torchvision() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    theirs = torchvisions_normalize(to_tensor(pixels[0].numpy()), list(TINY.model.mean), list(TINY.model.std))
    ours = normalize(pixels, TINY.model)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs[None], rtol=1e-5, atol=1e-6)


def test_normalising_leaves_the_loaders_images_as_they_are() -> None:
    pixels = torch.full((1, 2, 2, 3), 7, dtype=torch.uint8)
    normalize(pixels, TINY.model)
    assert pixels.unique().tolist() == [7]


def test_erasing_fills_exactly_the_box_of_each_image() -> None:
    before = images()
    after = erase(before.clone(), boxed(BOXES), KEYS)
    inside = torch.zeros(4, 8, 8, dtype=torch.bool)
    for number, (top, left, height, width) in enumerate(BOXES.tolist()):
        inside[number, top : top + height, left : left + width] = True
    changed = after != before
    assert torch.equal(changed, inside[:, None].expand(4, 3, 8, 8))
    assert inside.sum(dim=(1, 2)).tolist() == [20, 0, 16, 8]


def test_erasing_fills_with_normal_noise() -> None:
    box = np.array([[0, 0, 64, 64]])
    noise = erase(torch.zeros(1, 3, 64, 64), boxed(box), KEYS[:1])
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_erasing_differs_between_keys() -> None:
    box = np.array([[1, 1, 6, 6]] * 4)
    noise = erase(torch.zeros(4, 3, 8, 8), boxed(box), KEYS)[:, :, 1:7, 1:7].flatten(1)
    equal = (noise[:, None] == noise).float().mean(2)
    assert torch.equal(equal, torch.eye(4))


@pytest.mark.parametrize("slots", [[2], [3, 2], [1, 2], [2, 0, 3, 1]])
def test_a_view_is_erased_the_same_in_any_batch(slots: list[int]) -> None:
    whole = erase(images(), boxed(BOXES), KEYS)
    part = erase(images()[slots], boxed(BOXES[slots]), KEYS[slots])
    assert torch.equal(part, whole[slots])


def test_a_batch_without_a_box_is_left_as_it_is() -> None:
    before = images()
    assert torch.equal(erase(before.clone(), boxed(np.zeros((4, 4), dtype=np.int64)), KEYS), before)


SIZE = 10
ERASED = [[0, 0, 0, 0], [2, 1, 3, 6], [0, 0, 9, 9], [0, 0, 0, 0]]
MIXED = [[0, 0, 0, 0], [3, 3, 7, 4], [0, 0, 0, 0], [2, 0, 5, 10]]  # mixup, cutmix, nothing, cutmix
LAMS, PARTNERS = [0.3, 0.72, 1.0, 0.5], [2, 3, 1, 0]


def a_batch(*, mixed: bool = True) -> Batch:
    """Return four views, two erased, and mixed in every way or not at all."""
    records = Records.room(4, view_record(SIZE))
    views = records.host
    views["pixels"] = np.random.default_rng(0).integers(256, size=(4, SIZE, SIZE, 3))
    views["label"], views["key"], views["depth_key"], views["erased"] = [3, 0, 1, 3], KEYS, KEYS + 1, ERASED
    views["lam"], views["partner"], views["cut"] = (LAMS, PARTNERS, MIXED) if mixed else (1, range(4), 0)
    numbers = np.arange(4)
    return Batch(0, 0, 0, records, samples=numbers, copies=numbers, unusable=[], replaced=False)


def noise(key: int, channel: int, y: int, x: int) -> float:
    """Return the noise of a pixel of a view, in unbounded integers and doubles."""
    number = (channel * SIZE + y) * SIZE + x + 1
    bits = (key + (number + (Purpose.ERASE << 40)) * GOLDEN) % 2**64
    for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
        bits = (bits ^ bits >> shift) * factor % 2**64
    bits ^= bits >> 31
    radius, angle = ((bits >> 40) + 1) / 2**24, (bits >> 16) % 2**24 / 2**24
    return math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)


def plain_model_input(batch: Batch) -> NDArray[np.float64]:
    """Return what the model is to see: pixel by pixel, in doubles."""
    views, mean, std = batch.records.host, np.array(TINY.model.mean), np.array(TINY.model.std)
    images = (views["pixels"] / 255 - mean) / std
    for image, key, (top, left, height, width) in zip(images, views["key"].tolist(), views["erased"], strict=True):
        for y, x, channel in product(range(top, top + height), range(left, left + width), range(3)):
            image[y, x, channel] = noise(key, channel, y, x)
    mixed = images.copy()
    for image, lam, partner, (top, left, height, width) in zip(
        mixed, views["lam"].astype(float), images[views["partner"]], views["cut"], strict=True
    ):
        if height:
            image[top : top + height, left : left + width] = partner[top : top + height, left : left + width]
        else:
            image[:] = lam * image + (1 - lam) * partner
    return mixed.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("mixed", [True, False])
def test_the_model_sees_what_plain_arithmetic_makes_of_a_batch(mixed: bool) -> None:
    batch = a_batch(mixed=mixed)
    before = batch.records.block.clone()
    views = on_device(batch, CPU)
    assert (views.mixing is not None) == mixed
    seen = model_input(views, TINY.model)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(seen.numpy(), plain_model_input(batch), rtol=1e-5, atol=2e-6)
    assert torch.equal(batch.records.block, before)


def test_a_batch_goes_to_the_device_in_one_copy_and_nothing_waits_for_it() -> None:
    """A device that has shapes alone raises where a number of its own is asked for."""
    batch, meta = a_batch(), torch.device("meta")
    copied: list[Any] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == meta:
                copied.append(args[0])
            return func(*args, **(kwargs or {}))

    for constants in (2, 0):  # of the model's colours, copied once
        copied.clear()
        with Watched():
            views = on_device(batch, meta)
            images = model_input(views, TINY.model)
            targets = mix_labels(views.labels, views.mixing, classes=4, smoothing=0.1)
        assert (images.shape, targets.shape) == ((4, 3, SIZE, SIZE), (4, 4))
        assert images.is_meta
        assert targets.is_meta
        assert (views.erased.rows, views.erased.pixels) == (12, 99)
        assert copied[0].data_ptr() == batch.records.block.data_ptr()
        assert len(copied) == 1 + constants
