"""`learnt.png` of a run: held-out images with what the model says of them, and its accuracy as it trained."""

import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.batch import EvaluationBatches
from pipeline.data.device import normalize
from pipeline.folder import RunFolder
from pipeline.model.student import fuse, heads
from shards.errors import harmless

COLUMNS: Final = 10
ROWS: Final = 4
NAME: Final = 10  # letters of a class's name


def draw_learnt(
    folder: RunFolder, net: nn.Module, batches: EvaluationBatches, classes: tuple[str, ...], device: torch.device
) -> str:
    """Write the picture and return its path; images of the first parts of the split, wrong answers in red."""
    from matplotlib.figure import Figure  # a run imports it at its end

    recipe = batches.recipe
    names = [harmless(name)[:NAME] for name in classes]
    shown = [batches[part] for part in range(-(-COLUMNS * ROWS // recipe.eval.batch)) if part < len(batches)]
    images = torch.cat([part.images for part in shown])[: COLUMNS * ROWS]
    labels = np.concatenate([part.labels for part in shown])[: COLUMNS * ROWS]
    net.to(device).eval()  # the best checkpoint's weights come from a file
    with torch.inference_mode():
        logits = heads(net, normalize(images.to(device), recipe.model)).float()
        probabilities = fuse(logits, recipe.distill.fusion).softmax(1).cpu()
    figure = Figure(figsize=(COLUMNS, 1.3 * ROWS + 3), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(1.3 * ROWS, 3))
    # one picture of all images: an axis of its own for each would take seconds
    size = recipe.model.img_size
    step_x, step_y = size * 1.08, size * 1.3
    upper.set_axis_off()
    upper.set(xlim=(0, step_x * COLUMNS), ylim=(step_y * ROWS, -0.3 * size), aspect="equal")
    upper.imshow(mosaic(images.numpy(), step_x, step_y), extent=(0, step_x * COLUMNS, step_y * ROWS, 0))
    for slot, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        answer = int(row.argmax())
        colour, truth = ("black", "") if answer == label else ("red", f"\nis {names[label]}")
        text = f"{names[answer]} {row[answer]:.0%}{truth}"
        left, top = slot % COLUMNS * step_x, slot // COLUMNS * step_y
        # the names of people's classes are no formulas
        upper.text(left, top - 0.04 * size, text, fontsize=7, color=colour, parse_math=False)
    upper.set_title(f"{recipe.name}: answers on held-out images (red: wrong)", fontsize=10, parse_math=False)
    for weights, points in accuracy(folder).items():
        lower.plot(*zip(*points, strict=True), marker=".", label=weights)
    if recipe.finetune.head_epochs:
        lower.axvline(recipe.finetune.head_epochs, color="grey", linestyle="--", label="from here on, all is trained")
    lower.set(xlabel="epoch", ylabel="top-1 on held-out images", ylim=(0, 1))
    lower.grid(alpha=0.3)
    lower.legend()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # letters that matplotlib's font has not
        figure.savefig(folder.picture, dpi=110)
    return str(folder.picture)


def mosaic(images: NDArray[np.uint8], step_x: float, step_y: float) -> NDArray[np.uint8]:
    """Return images [B, S, S, 3] side by side on white, a row after the other, each from the upper left of its cell."""
    size = images.shape[1]
    canvas = np.full((round(step_y * ROWS), round(step_x * COLUMNS), 3), 255, np.uint8)
    for slot, image in enumerate(images):
        top, left = round(slot // COLUMNS * step_y), round(slot % COLUMNS * step_x)
        canvas[top : top + size, left : left + size] = image
    return canvas


def accuracy(folder: RunFolder) -> dict[str, list[tuple[float, float]]]:
    """Return (epoch, top-1) of a run's evaluations, by weights."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in folder.logged("eval"):
        if "weights" in line and "top1" in line:
            points.setdefault(line["weights"], []).append((line["epoch"], line["top1"]))
    return points
