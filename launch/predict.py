"""`vitrail predict`: what a trained model says of image files, wherever they are."""

import glob
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import Dataset

from launch.trained import Trained, TrainedVerb, refuse_many
from launch.verb import Json, resolved
from pipeline.config import Recipe
from pipeline.data.augment import center
from pipeline.data.device import normalize
from pipeline.data.loader import load
from pipeline.data.record import room
from pipeline.devices import pins, to_device
from pipeline.hosting import build_accelerator
from pipeline.job import PREDICTING, Job
from pipeline.model.build import build_student
from pipeline.model.student import fuse, heads
from shards.decode import FORMATS, IMAGE_EXTENSIONS, MAX_BYTES, decode, kind_of
from shards.errors import DamagedFile, Problem, SampleError, ShardError, harmless
from shards.files import open_regular
from shards.places import is_url, read_text
from shards.progress import progress
from shards.terminal import plain

STANDARD_INPUT: Final = "-"


class Asked(NamedTuple):
    """An image that is asked for, by its name; `content` where it is at hand, `wrong` where there is none."""

    name: str
    content: bytes | None = None
    wrong: str = ""


class Images(NamedTuple):
    """A batch: places of the images among those asked for, uint8 [B, S, S, 3], and what is wrong with others."""

    places: list[int]
    images: Tensor
    wrong: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class Predict(TrainedVerb):
    """Say what a trained model sees in image files: a table on a terminal, else a line of JSON for each.

    Takes the recipe's own fields too: --eval.batch, --eval.crop-ratio, ... Exit code 1: some cannot be used.

    Example: vitrail predict RUN photo.jpg holidays/ "*.png" https://example.org/cat.jpg
    """

    reads = ()

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, patterns, URLs; - for names on standard input, one a line, or for an image there"""
    top: int = 5  # answers of an image
    json: Json = False  # lines of JSON on a terminal too

    def __call__(self, arguments: list[str]) -> int:
        """Print the answers; name what cannot be used, and say how fast it went."""
        trained, request = self.asked(arguments)
        asked = list(asked_for(self.images))
        job = resolved(request, PREDICTING, found=self._problems(asked))
        refuse_many(job, "predict")
        lines = self.json or not is_for_people()
        table = new_table()
        failed, began = 0, time.perf_counter()
        for name, answers in predictions(job, asked, self.top):
            if isinstance(answers, str):
                failed += 1
                print(harmless(f"not usable: {answers}"), file=sys.stderr)
            elif lines:
                print(json.dumps(said_of(name, answers, trained)), flush=True)
            else:
                add_rows(table, name, answers, trained)
        seconds = time.perf_counter() - began
        if not lines:
            Console().print(table)
        done = len(asked) - failed
        print(f"{done} images, {done / seconds:.1f} images/s" + (f"; {failed} not usable" if failed else ""),
              file=sys.stderr)  # fmt: skip
        return 1 if failed else 0

    def _problems(self, asked: Sequence[Asked]) -> list[Problem]:
        """Return what is wrong with the verb's own options."""
        found = []
        if not asked:
            found.append(Problem("images", "no image is named: files, folders, patterns or URLs, or - for a list."))
        if self.top < 1:
            found.append(Problem("top", f"--top is {self.top}; it starts at 1."))
        return found


VERB: Final = Predict


def is_for_people() -> bool:
    """Return whether what is printed is read by people, on a terminal."""
    return sys.stdout.isatty()


def asked_for(names: Sequence[str]) -> Iterator[Asked]:
    """Yield the images that are named; of folders and patterns, those in them, in order."""
    for name in names:
        if name == STANDARD_INPUT:
            yield from from_standard_input()
        else:
            yield from asked_by(name)


def from_standard_input() -> Iterator[Asked]:
    """Yield the image on standard input, or those that are named there, one a line."""
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if kind_of(content) in FORMATS:
        yield Asked("standard input", content)
        return
    content += sys.stdin.buffer.read()  # more names than an image may have bytes
    for line in os.fsdecode(content).splitlines():
        if line.strip():
            yield from asked_by(line.strip())


def asked_by(name: str) -> Iterator[Asked]:
    """Yield the images that a name stands for."""
    path = Path(name)
    if "://" in name or path.is_file():
        yield Asked(name)
        return
    if path.is_dir():
        found = [str(inner) for inner in sorted(path.rglob("*")) if is_image(inner)]
    else:
        found = [match for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
    yield from map(Asked, found)
    if not found:
        yield Asked(name, wrong=f"{name}: {'no images in this folder' if path.is_dir() else 'no such file'}.")


def is_image(path: Path) -> bool:
    """Return whether a file that lies in a folder is an image, by its name."""
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def content_of(asked: Asked) -> bytes:
    """Return the bytes of an image.  Raises SampleError where they cannot be had."""
    if asked.wrong:
        raise SampleError(asked.wrong)
    if asked.content is not None:
        return asked.content
    try:
        if is_url(asked.name):
            content = read_text(asked.name)
            if content is None:
                raise SampleError(f"{asked.name}: not there.")
            return content
        with open_regular(Path(asked.name)) as file:
            return file.read(MAX_BYTES + 1)
    except ShardError as error:
        raise SampleError(str(error)) from error
    except DamagedFile as error:
        raise SampleError(f"{asked.name}: {error.reason}.") from error
    except OSError as error:
        raise SampleError(f"{asked.name}: {error.strerror}.") from error


class ImageBatches(Dataset[Images]):
    """Images as a model takes them, `eval.batch` at a time."""

    def __init__(self, recipe: Recipe, asked: Sequence[Asked]) -> None:
        self.recipe = recipe
        self.asked = asked

    def __len__(self) -> int:
        return -(-len(self.asked) // self.recipe.eval.batch)

    def __getitem__(self, part: int) -> Images:
        """Read, decode, resize and crop; what cannot be used is left out and named."""
        size, count = self.recipe.model.img_size, self.recipe.eval.batch
        wanted = range(part * count, min((part + 1) * count, len(self.asked)))
        images = room(len(wanted), size, size, 3)
        places: list[int] = []
        wrong: dict[int, str] = {}
        for place in wanted:
            asked = self.asked[place]
            try:
                image = decode(content_of(asked), asked.name)
            except SampleError as error:
                wrong[place] = str(error)
                continue
            images.numpy()[len(places)] = center(image, size, self.recipe.eval.crop_ratio)
            places.append(place)
        return Images(places, images[: len(places)], wrong)


@torch.inference_mode()
def predictions(job: Job, asked: Sequence[Asked], top: int) -> Iterator[tuple[str, list[tuple[int, float]] | str]]:
    """Yield each image's name with its answers (number of a class, probability), or with what is wrong with it."""
    recipe = job.recipe
    accelerator = build_accelerator(job.hosting, recipe.compute)
    net = build_student(recipe).to(accelerator.device).eval()
    batches = ImageBatches(recipe, asked)
    loader = load(
        batches,
        range(len(batches)),
        workers=min(job.hosting.workers, len(batches) - 1),  # of one batch, this process alone is faster
        pin_memory=pins(accelerator.device),
        remote=any("://" in one.name for one in asked),
    )
    for batch in progress(loader, len(batches), "looking"):
        answers: dict[int, Any] = dict(batch.wrong)
        if batch.places:
            images = normalize(to_device(batch.images, accelerator.device), recipe.model)
            with accelerator.autocast():
                by_head = heads(net, images).float()
            probabilities = fuse(by_head, recipe.distill.fusion).softmax(1)
            best = probabilities.topk(min(top, probabilities.shape[1]))
            for place, numbers, values in zip(batch.places, best.indices.tolist(), best.values.tolist(), strict=True):
                answers[place] = list(zip(numbers, values, strict=True))
        for place in sorted(answers):
            yield asked[place].name, answers[place]


def said_of(name: str, answers: list[tuple[int, float]], trained: Trained) -> dict[str, Any]:
    """Return what is said of an image to scripts."""
    said = []
    for number, probability in answers:
        called = trained.named(number)
        described = {"description": trained.descriptions[called]} if called in trained.descriptions else {}
        said.append({"class": called, **described, "number": number, "probability": probability})
    return {"image": name, "answers": said}


def new_table() -> Table:
    """Return the table for people."""
    table = Table()
    for column in ("image", "answer", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    return table


def add_rows(table: Table, name: str, answers: list[tuple[int, float]], trained: Trained) -> None:
    """Add what is said of an image to the table."""
    for place, (number, probability) in enumerate(answers):
        last = place == len(answers) - 1
        table.add_row(*map(plain, ("" if place else name, trained.described(number), f"{probability:.1%}")),
                      end_section=last)  # fmt: skip
