"""`vitrail eval`: how good a trained model is on a split, every sample of it counted once, on any hosting."""

import csv
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from launch.trained import Trained, TrainedVerb, numbers_of, with_names
from launch.verb import Json, resolved
from pipeline.data.batch import Unusable
from pipeline.hosting import build_accelerator
from pipeline.job import EVALUATING, Job
from pipeline.model.build import build_student
from pipeline.session.answers import Answers, answers_of
from pipeline.session.evaluate import evaluation_loader
from pipeline.session.measures import Measures, measured
from pipeline.session.session import share_fingerprints
from shards.dataset import Dataset
from shards.errors import BadRequest, DamagedFile, Problem, VitrailError, harmless
from shards.files import atomic_write, read_json
from shards.index import Index
from shards.progress import progress
from shards.terminal import plain

SHOWN: Final = 10  # classes and confusions, of those where most goes wrong
VALIDATION_KEY: Final = re.compile(r"ILSVRC2012_val_(\d{8})")  # by which ReaL's labels are ordered


@dataclass(frozen=True, kw_only=True)
class Evaluate(TrainedVerb):
    """Say how good a trained model is on a split: accuracy, loss, calibration, F1, by class, and what it mixes up.

    Takes the recipe's own fields too: --data, --model.img-size, --eval.crop-ratio, --eval.batch, --precision, ...
    Several processes: accelerate launch -m launch.cli eval ... Exit code 1: some samples could not be used.

    Example: vitrail eval RUN --data SOURCE --weights ema
    """

    split: str = ""  # of the data; empty: val, or test, or the only one
    real: Path | None = None  # ReaL's labels of ImageNet's validation split: real.json of its authors
    csv: Path | None = None  # file to write with every answer
    json: Json = False  # for scripts: all classes, all confusions

    def __call__(self, arguments: list[str]) -> int:
        """Print what was found."""
        trained, request = self.asked(arguments)
        job = resolved(request, EVALUATING, found=self._problems())
        assert job.dataset
        index = chosen_split(job.dataset, self.split)
        if (self.csv or self.real) and index.known is None:
            raise BadRequest.of(
                "data",
                f"--data {job.data}: the keys of its samples, which --csv and --real go by, are known once its tars "
                f"are indexed (docs/data.md).",
            )
        numbers, note = numbers_of(job.dataset.classes, trained)
        trained = trained if trained.classes else with_names(trained, job.dataset.classes, numbers)
        real = read_real(self.real, index) if self.real else None
        if note and job.hosting.main:
            print(harmless(note), file=sys.stderr)
        answers, unusable = evaluated(job, index, numbers)
        if not job.hosting.main:
            return 1 if unusable else 0
        for one in unusable:
            print(harmless(f"not usable: {one.reason}"), file=sys.stderr)
        if not len(answers.samples):
            raise VitrailError(f"{index.dataset}: none of the {len(index)} samples of {index.folder.name} can be used.")
        found = measured(answers, job.recipe.data.classes)
        if self.csv:
            write_answers(self.csv, answers, index, trained)
        said = said_of(job, trained, index, found) | (real_measures(answers, real) if real else {})
        if self.json:
            print(json.dumps(said | by_class(found, trained)))
        else:
            show(said, found, trained)
        return 1 if unusable else 0

    def _problems(self) -> list[Problem]:
        """Return what is wrong with the verb's own options."""
        found = []
        if self.csv and (self.csv.is_dir() or not self.csv.absolute().parent.is_dir()):
            found.append(Problem("csv", f"--csv {self.csv}: name a file in a folder that is there."))
        if self.real and not self.real.is_file():
            found.append(Problem("real", f"--real {self.real}: no such file; it is real.json of reassessed-imagenet."))
        return found


VERB: Final = Evaluate


def chosen_split(dataset: Dataset, name: str) -> Index:
    """Return the split that is asked for, or that a run is evaluated on, or the only one.  Raises BadRequest."""
    splits = dataset.splits
    chosen = name or dataset.evaluation_split() or (next(iter(splits)) if len(splits) == 1 else "")
    if chosen not in splits:
        what = f"no split {name!r}" if name else "no split `val` or `test`"
        raise BadRequest.of("split", f"{dataset.named}: {what}; it has {', '.join(splits)}. Name one: --split NAME")
    return splits[chosen]


def evaluated(job: Job, index: Index, numbers: NDArray[np.int64]) -> tuple[Answers, list[Unusable]]:
    """Return the answers of a job's model for a split, on all processes, and the samples that cannot be used."""
    recipe = job.recipe
    accelerator = build_accelerator(job.hosting, recipe.compute)
    job = share_fingerprints(job)
    net = build_student(recipe).to(accelerator.device).eval()
    loader = evaluation_loader(job, index, accelerator)
    # the main process has as many parts as any other, or one more
    batches = progress(loader, len(loader), "evaluating") if job.hosting.main else loader
    found = answers_of(net, recipe, batches, len(index), accelerator, numbers)
    accelerator.end_training()
    return found


def said_of(job: Job, trained: Trained, index: Index, found: Measures) -> dict[str, Any]:
    """Return what was evaluated, how, and what was found in short."""
    recipe = job.recipe
    short = {name: value for name, value in found._asdict().items() if name not in ("classes", "confusions")}
    return {
        "model": recipe.model.name,
        "weights": trained.weights,
        "data": job.data,
        "split": index.folder.name,
        "img_size": recipe.model.img_size,
        "crop_ratio": recipe.eval.crop_ratio,
        "precision": job.hosting.precision,
        **short,
        "of": len(index),
    }


def by_class(found: Measures, trained: Trained) -> dict[str, Any]:
    """Return what was found of each class, and all confusions, with names."""
    return {
        "classes": [{"class": trained.named(number), **of._asdict()} for number, of in found.classes.items()],
        "confusions": [
            {"class": trained.named(one.label), "answer": trained.named(one.answer), "samples": one.samples}
            for one in found.confusions
        ],
    }


def show(said: dict[str, Any], found: Measures, trained: Trained) -> None:
    """Print what was found, with the classes and confusions where most goes wrong."""
    print(harmless(f"{said['model']}, {trained.weights}: {said['img_size']} px, crop ratio {said['crop_ratio']:g}, "
                   f"{said['precision']}"))  # fmt: skip
    real = f"  ReaL {said['real_top1']:.2%} of {said['real_samples']}" if "real_top1" in said else ""
    print(harmless(f"{said['data']}, {said['split']}: {said['samples']}/{said['of']} samples"))
    print(f"top-1 {found.top1:.2%}  top-5 {found.top5:.2%}  loss {found.loss:.4f}  "
          f"calibration error {found.calibration_error:.4f}  macro F1 {found.macro_f1:.4f}{real}")  # fmt: skip
    worst = sorted(found.classes.items(), key=lambda item: item[1].top1)[:SHOWN]
    table = Table(title=f"the {len(worst)} hardest of {len(found.classes)} classes")
    for column in ("class", "samples", "top-1", "precision", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, of in worst:
        row = (trained.described(number), of.samples, f"{of.top1:.1%}", f"{of.precision:.1%}", f"{of.f1:.3f}")
        table.add_row(*map(plain, row))
    confused = Table(title="most often confused")
    for column in ("class", "taken for", "samples"):
        confused.add_column(column, justify="right" if column == "samples" else "left")
    for one in found.confusions[:SHOWN]:
        confused.add_row(*map(plain, (trained.described(one.label), trained.described(one.answer), one.samples)))
    Console().print(table)
    if found.confusions:
        Console().print(confused)


def write_answers(path: Path, answers: Answers, index: Index, trained: Trained) -> None:
    """Write a line for every sample: its key, its class, its loss, and the answers with their probabilities."""
    count = answers.classes.shape[1]
    places = [f"{what}_{place}" for place in range(1, count + 1) for what in ("answer", "probability")]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["key", "class", "loss", *places])
    columns = (answers.samples, answers.labels, answers.losses, answers.classes, answers.probabilities)
    for sample, label, loss, classes, probabilities in zip(*(column.tolist() for column in columns), strict=True):
        pairs = zip(map(trained.named, classes), probabilities, strict=True)
        writer.writerow([index.key(sample), trained.named(label), loss, *(value for pair in pairs for value in pair)])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_real(path: Path, index: Index) -> dict[int, list[int]]:
    """Return ReaL's labels by sample of ImageNet's validation split, none for a sample that has none.

    Raises BadRequest for another file or another split. Source: Beyer et al. 2020, arXiv 2006.07159; real.json of
    github.com/google-research/reassessed-imagenet holds a list of labels for each image, in the order of their names.
    """
    try:
        labels = read_json(path, list[list[int]])
    except DamagedFile as error:
        raise BadRequest.of("real", f"--real {path}: a list of lists of numbers is needed ({error.reason}).") from error
    found = {}
    for sample in range(len(index)):
        key = index.key(sample)
        named = VALIDATION_KEY.search(key)
        if not named or not 1 <= int(named[1]) <= len(labels):
            raise BadRequest.of(
                "real",
                f"--real {path}: goes by names like ILSVRC2012_val_00000001, up to {len(labels)}, and the sample "
                f"{key!r} of {index.dataset} has none. Shards of ImageNet's own files have them.",
            )
        found[sample] = labels[int(named[1]) - 1]
    return found


def real_measures(answers: Answers, real: dict[int, list[int]]) -> dict[str, Any]:
    """Return the share of samples whose answer is one of ReaL's labels, of those that have any."""
    first = zip(answers.samples.tolist(), answers.classes[:, 0].tolist(), strict=True)
    right = torch.tensor([answer in real[sample] for sample, answer in first if real[sample]], dtype=torch.float64)
    return {"real_top1": right.mean().item() if len(right) else 0.0, "real_samples": len(right)}
