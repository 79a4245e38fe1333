"""`learnt.png` of a run: held-out images with what the model says of them, and its accuracy as it trained."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from pipeline.data.batch import EvaluationBatches
from pipeline.data.device import normalize
from pipeline.folder import RunFolder
from pipeline.model.student import fuse, heads

COLUMNS: Final = 10
ROWS: Final = 4


def draw_learnt(
    folder: RunFolder, net: nn.Module, batches: EvaluationBatches, classes: tuple[str, ...], device: torch.device
) -> Path:
    """Write the picture and return its path; images of the first parts of the split, wrong answers in red."""
    recipe = batches.recipe
    shown = [batches[part] for part in range(-(-COLUMNS * ROWS // recipe.eval.batch)) if part < len(batches)]
    images = torch.cat([part.images for part in shown])[: COLUMNS * ROWS]
    labels = np.concatenate([part.labels for part in shown])[: COLUMNS * ROWS]
    net.eval()
    with torch.inference_mode():
        logits = heads(net, normalize(images, recipe.model, device)).float()
        probabilities = fuse(logits, recipe.distill.fusion).softmax(1).cpu()
    figure = Figure(figsize=(COLUMNS, 1.3 * ROWS + 3), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.3 * ROWS, 3))
    upper, lower = (figure.add_subfigure(grid[row, 0]) for row in range(2))
    axes = upper.subplots(ROWS, COLUMNS).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label, row in zip(axes, images.numpy(), labels, probabilities, strict=False):
        answer = int(row.argmax())
        axis.imshow(image)
        colour, truth = ("black", "") if answer == label else ("red", f", is {classes[label][:10]}")
        axis.set_title(f"{classes[answer][:10]} {row[answer]:.0%}{truth}", fontsize=7, color=colour)
    upper.suptitle(f"{recipe.name}: answers on held-out images (red: wrong)", fontsize=10)
    axis = lower.subplots()
    for weights, points in accuracy(folder).items():
        axis.plot(*zip(*points, strict=True), marker=".", label=weights)
    axis.set(xlabel="epoch", ylabel="top-1 on held-out images", ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(folder.picture, dpi=110)
    return folder.picture


def accuracy(folder: RunFolder) -> dict[str, list[tuple[float, float]]]:
    """Return (epoch, top-1) of a run's evaluations, by weights."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in folder.logged("eval"):
        points.setdefault(line["weights"], []).append((line["epoch"], line["top1"]))
    return points
