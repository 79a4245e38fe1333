"""What the device does to a batch, by part, beside the plain formulas: ms an image, medians of rounds taken in turn.

    python tests/bench/bench_device.py [BATCH [THREADS]]

Views of 224 px with the erasing and mixing of DeiT, other ones in each round. The plain formulas are those that this
pipeline had: a constant of three numbers at every step, noise for all pixels of an image of which a part is erased, and
a mask and a second batch for all that is mixed. Beside them stands how long Pillow takes for a JPEG of 500 x 375.
"""

import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, Mix, Model
from pipeline.data.batch import Batch
from pipeline.data.boxes import erase_box
from pipeline.data.device import Views, erase, normalize, on_device
from pipeline.data.mix import draw_mixing, mix_images
from pipeline.data.record import Records, view_record
from pipeline.device_randomness import normals
from pipeline.randomness import Purpose, generator, view_keys

ROUNDS: Final = 15
SIZE: Final = 224
MODEL: Final = Model(name="deit_small_patch16_224", mean=IMAGENET_MEAN, std=IMAGENET_STD)
CPU: Final = torch.device("cpu")
PARTS: Final = ("normalise", "erase", "mix")


def main() -> None:
    batch, threads = (int(word) for word in (*sys.argv[1:], *("64", "1")[len(sys.argv) - 1 :]))
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {f"{arm} {part}": [] for arm in ("plain", "ours") for part in PARTS}
    decoding, jpeg = [], photograph()
    for step in range(ROUNDS + 1):
        made = views_of(step, batch)
        results = {
            "plain": arm(made, seconds, "plain", plain_normalize, plain_erase, plain_mix),
            "ours": arm(
                made,
                seconds,
                "ours",
                lambda views: normalize(views.images, MODEL),
                lambda images, views: erase(images, views.erased, views.keys),
                lambda images, views: mix_images(images, views.mixing),
            ),
        }
        assert torch.allclose(results["plain"], results["ours"], rtol=0, atol=1e-5), "the arms do the same"
        decoding.append(timed(lambda: Image.open(io.BytesIO(jpeg)).convert("RGB"))[1])
    each = {name: [1000 * spent / batch for spent in of[1:]] for name, of in seconds.items()}
    for name in ("plain", "ours"):
        each[f"{name} all"] = [sum(of) for of in zip(*(each[f"{name} {part}"] for part in PARTS), strict=True)]
    print(f"| ms an image, {batch} views of {SIZE} px, {threads} threads | plain | ours | plain over ours |")
    print("|---|---|---|---|")
    for part in (*PARTS, "all"):
        plain, ours = each[f"plain {part}"], each[f"ours {part}"]
        ratio = statistics.median(before / after for before, after in zip(plain, ours, strict=True))
        print(f"| {part} | {statistics.median(plain):.2f} | {statistics.median(ours):.2f} | {ratio:.1f} |")
    print(
        f"\nPillow decodes a 500 x 375 JPEG of {len(jpeg) // 1000} kB in {1000 * statistics.median(decoding):.2f} ms; "
        f"medians of {ROUNDS} rounds; torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {platform.machine()}"
    )


def views_of(step: int, batch: int) -> Views:
    """Return views of a step as a worker makes them but for their pixels, three copies of each image."""
    numbers, copies = np.arange(batch) // 3, np.arange(batch) % 3
    records = Records.room(batch, view_record(SIZE))
    host = records.host
    host["pixels"] = np.random.default_rng(step).integers(256, size=(batch, SIZE, SIZE, 3), dtype=np.uint8)
    host["key"] = view_keys(0, step, numbers, copies)
    host["erased"] = [erase_box(SIZE, 0.25, generator(step, Purpose.ERASE, sample=view)) for view in range(batch)]
    host["lam"], host["cut"], host["partner"] = draw_mixing(
        Mix(mixup_alpha=0.8, cutmix_alpha=1.0), seed=0, step=step, virtual_rank=0, copies=copies, size=SIZE
    )
    return on_device(Batch(step, 0, step, records, numbers, copies, [], replaced=False), CPU)


def arm(
    views: Views,
    seconds: dict[str, list[float]],
    name: str,
    normalize_: Callable[[Views], Tensor],
    erase_: Callable[[Tensor, Views], Tensor],
    mix_: Callable[[Tensor, Views], Tensor],
) -> Tensor:
    """Return what the model is to see, and note how long each part took."""
    images, spent = timed(lambda: normalize_(views))
    seconds[f"{name} normalise"].append(spent)
    erased, spent = timed(lambda: erase_(images, views))
    seconds[f"{name} erase"].append(spent)
    mixed, spent = timed(lambda: mix_(erased, views))
    seconds[f"{name} mix"].append(spent)
    return mixed


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and the seconds that it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def photograph() -> bytes:
    """Return a JPEG of 500 x 375 with about the bytes of a photograph of ImageNet."""
    coarse = np.random.default_rng(0).integers(256, size=(75, 100, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def plain_normalize(views: Views) -> Tensor:
    pixels = views.images.permute(0, 3, 1, 2).float()
    mean = torch.tensor(MODEL.mean).view(3, 1, 1) * 255
    std = torch.tensor(MODEL.std).view(3, 1, 1) * 255
    return pixels.sub_(mean).div_(std)


def plain_erase(images: Tensor, views: Views) -> Tensor:
    (erased,) = views.erased.sides[:, 2].nonzero(as_tuple=True)
    if len(erased):
        noise = normals(views.keys[erased], Purpose.ERASE, torch.arange(3 * SIZE**2)).view(-1, 3, SIZE, SIZE)
        images[erased] = torch.where(inside(views.erased.sides[erased]), noise, images[erased])
    return images


def plain_mix(images: Tensor, views: Views) -> Tensor:
    assert views.mixing
    lam, boxes, partner = views.mixing
    share = torch.where((boxes[:, 2:] > 0).all(1), 1, lam).view(-1, 1, 1, 1) * ~inside(boxes)
    return torch.lerp(images[partner], images, share)


def inside(boxes: Tensor) -> Tensor:
    """Return which pixels lie in each image's box, bool [B, 1, H, W]."""
    tops, lefts, heights, widths = (part.view(-1, 1, 1, 1) for part in boxes.unbind(1))
    rows, columns = torch.arange(SIZE).view(-1, 1), torch.arange(SIZE)
    return (rows >= tops) & (rows < tops + heights) & (columns >= lefts) & (columns < lefts + widths)


if __name__ == "__main__":
    main()
