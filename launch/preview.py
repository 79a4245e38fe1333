"""`vitrail preview`: the images as the model sees them, original beside views with the names of their operations."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from matplotlib.figure import Figure

from launch.verb import RecipeVerb, resolved
from pipeline.data.augment import center
from pipeline.data.batch import TrainingBatches
from pipeline.data.device import model_input, on_device
from pipeline.job import LOOKING, Job
from shards.decode import decode
from shards.errors import Problem, harmless

ROWS: Final = 6
VIEWS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Preview(RecipeVerb):
    """Draw images as the model sees them, original beside views; below a view stand its policy's operations.

    Takes the recipe's own fields too: --data, --augment.erase, --mix.prob, ...

    Example: vitrail preview deit_small --data DIR --output views.png
    """

    output: Path  # picture to write: a .png, if no other ending is given

    def __call__(self, arguments: list[str]) -> int:
        """Write the picture."""
        path, found = picture_named(self.output)
        job = resolved(self.request(arguments), LOOKING, found=found)
        draw_preview(job, path)
        print(harmless(path))
        return 0


VERB: Final = Preview


def picture_named(output: Path) -> tuple[Path, list[Problem]]:
    """Return the file to draw, a .png where no ending is given, and what is wrong with its name."""
    path = output if output.suffix else Path(f"{output}.png")
    if output.name in ("", "..") or path.is_dir():
        return path, [Problem("output", f"--output {output}: a folder; name a file in it.")]
    if path.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        return path, [Problem("output", f"--output {output}: no picture ends in {path.suffix}; name a .png.")]
    return path, []


def draw_preview(job: Job, path: Path) -> None:
    """Write a picture: in each row an image, views of it, and what the model sees after erasing and mixing.

    Below a view stand the operations that the policy did, in their order.
    """
    recipe, index = job.recipe, job.index
    # one virtual rank, so that a data set smaller than the global batch can be looked at too
    alone = replace(recipe, batch=min(recipe.rank_batch, len(index)), virtual_ranks=1)
    batches = TrainingBatches(alone, index)
    batch = batches[0, 0]
    seen = model_input(on_device(batch, torch.device("cpu")), recipe.model)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.model.mean, recipe.model.std))
    seen = (seen * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    samples = list(dict.fromkeys(batch.samples.tolist()))[:ROWS]
    figure = Figure(figsize=(1.7 * (VIEWS + 2), 2.1 * len(samples) + 0.4), layout="constrained")
    axes = figure.subplots(len(samples), VIEWS + 2, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        slot = batch.samples.tolist().index(sample)
        content = batches.reader.read(sample)
        original = decode(content, index.key(sample))
        epoch, done = batches.order.views(0, 0).epoch, [list[str]() for _ in range(VIEWS)]
        views = [batches.view(original, sample, epoch, copy, names) for copy, names in enumerate(done)]
        pictures = [
            center(original, recipe.model.img_size, recipe.eval.crop_ratio),
            *views,
            seen[slot].numpy(),
        ]
        for axis, picture, names in zip(row, pictures, ([], *done, []), strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[], frame_on=False)
            axis.set_xlabel("\n".join(names), fontsize=7)  # what the policy did
    titles = ("image", *(f"view {copy}" for copy in range(VIEWS)), "erased, mixed")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
