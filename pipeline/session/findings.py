"""What an evaluation found, beside its numbers: which classes are confused, the most confident mistakes, attention.

`find` makes it of the answers of one net, in the main process. `findings/` of a run's folder keeps it as JSON and small
PNGs, so that `vitrail report` reads files alone. Each evaluation writes it anew.
Shapes: N samples of the split, B images, S side of an image, g patches a side of it, T tokens that look.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.models import VisionTransformer, VisionTransformerDistilled
from torch import Tensor, nn

from pipeline.data.augment import center
from pipeline.data.batch import EvaluationBatches
from pipeline.data.device import normalize
from pipeline.folder import FindingsHead, RunFolder
from pipeline.session.answers import Answers
from shards.decode import decode
from shards.files import write_json

MISTAKES: Final = 12
LOOKED_AT: Final = 6  # images of whose attention there are pictures
TOKENS: Final = ("class", "distillation")
SIDE: Final = 160  # pixels of a picture that is kept, at most


@dataclass(frozen=True)
class Findings:
    """What an evaluation found; pictures are uint8 [B, S, S, 3], attention float [T, B, g, g]."""

    head: FindingsHead
    mistakes: NDArray[np.uint8]
    looked_at: NDArray[np.uint8]
    attention: NDArray[np.float32] | None  # None where the net has no class token, as timm's ViTs have one


def find(
    net: nn.Module,
    weights: str,
    answers: Answers,
    batches: EvaluationBatches,
    classes: tuple[str, ...],
    step: int,
    device: torch.device,
) -> Findings:
    """Return what the answers of a net say; its images are read once more.

    The images whose attention is shown are the same in all evaluations of a split: as many steps of equal length
    through it.
    """
    index = batches.index
    samples, labels = answers.samples.numpy(), answers.labels.numpy()
    first, probabilities = answers.classes[:, 0].numpy(), answers.probabilities[:, 0].numpy()
    pairs, counts = np.unique(np.stack([labels, first]), axis=1, return_counts=True)
    wrong = np.flatnonzero(labels != first)
    surest = wrong[np.lexsort((samples[wrong], -probabilities[wrong]))][:MISTAKES]
    looked = np.unique(np.linspace(0, max(len(samples) - 1, 0), LOOKED_AT).astype(np.int64))[: len(samples)]
    # read first: of a shard that arrives the keys are known then
    images, mistaken = pictures(batches, samples[looked]), pictures(batches, samples[surest])
    seen = attention(net, normalize(torch.from_numpy(images).to(device), batches.recipe.model)) if len(images) else None
    head = FindingsHead(
        step=step,
        split=index.folder.name,
        weights=weights,
        samples=len(samples),
        classes=list(classes),
        confusion=[[*pair, count] for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)],
        mistakes=[
            {
                "key": index.key(int(samples[row])),
                "label": int(labels[row]),
                "answer": int(first[row]),
                "probability": float(probabilities[row]),
            }
            for row in surest
        ],
        looked_at=[index.key(sample) for sample in samples[looked].tolist()],
        tokens=list(TOKENS[: len(seen)]) if seen is not None else [],
    )
    return Findings(head, mistaken, images, seen)


def pictures(batches: EvaluationBatches, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images of a split as an evaluation takes them, [B, S, S, 3]."""
    model, crop_ratio = batches.recipe.model, batches.recipe.eval.crop_ratio
    read = [
        center(decode(batches.reader.read(sample), batches.index.key(sample)), model.img_size, crop_ratio)
        for sample in samples.tolist()
    ]
    return np.stack(read) if read else np.empty((0, model.img_size, model.img_size, 3), np.uint8)


@torch.inference_mode()
def attention(net: nn.Module, images: Tensor) -> NDArray[np.float32] | None:
    """Return where the tokens of a net's last block look, [T, B, g, g], for normalised images: the mean of its heads.

    The class token is the first; where there is a distillation token, it is the second. None for another network than
    timm's ViTs with a class token, and for those whose blocks have parts side by side.
    """
    if not isinstance(net, VisionTransformer) or net.cls_token is None:
        return None
    last: Any = getattr(net.blocks[-1], "attn", None)
    if last is None:
        return None
    seen: list[Tensor] = []
    fused = last.fused_attn
    hook = last.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    last.fused_attn = False  # which computes no map
    try:
        net.eval()(images)
    finally:
        last.fused_attn = fused
        hook.remove()
    rows, columns = net.patch_embed.grid_size
    tokens = len(TOKENS) if isinstance(net, VisionTransformerDistilled) else 1
    of_patches = seen[0].float().mean(1)[:, :tokens, net.num_prefix_tokens :]
    maps: NDArray[np.float32] = of_patches.transpose(0, 1).unflatten(2, (rows, columns)).cpu().numpy()
    return maps


def overlaid(image: NDArray[np.uint8], seen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image [S, S, 3] that is bright where a map [g, g] looks, and dark where it does not."""
    size = image.shape[0]
    share = seen / max(float(seen.max()), 1e-12)
    light = np.asarray(Image.fromarray(share.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    shown: NDArray[np.uint8] = (image * (0.15 + 0.85 * light.clip(0, 1))[..., None]).astype(np.uint8)
    return shown


def write_findings(folder: RunFolder, found: Findings) -> None:
    """Write findings/ of a run's folder, its head last."""
    folder.findings.mkdir(exist_ok=True)
    for number, image in enumerate(found.mistakes):
        _write_png(folder, "mistake", number, image)
    for number, image in enumerate(found.looked_at):
        _write_png(folder, "image", number, image)
        for token, maps in zip(
            found.head["tokens"], found.attention if found.attention is not None else (), strict=True
        ):
            _write_png(folder, token, number, overlaid(image, maps[number]))
    write_json(folder.findings_head, found.head)


def _write_png(folder: RunFolder, kind: str, number: int, pixels: NDArray[np.uint8]) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    image.save(folder.finding(kind, number), optimize=True)
