"""Evaluation beside the training of a run: its scores go to the log, what it found to `findings/`."""

from collections.abc import Mapping
from contextlib import closing
from typing import Final

import numpy as np
from torch import nn

from pipeline.data.batch import EvaluationBatches
from pipeline.errors import TrainingError
from pipeline.session.answers import Answers, Gathering, Predictions
from pipeline.session.drawing import heat_map
from pipeline.session.evaluate import Score, evaluate, evaluation_loader
from pipeline.session.findings import find, overlaid, write_findings
from pipeline.session.log import Log
from pipeline.session.quarantine import Quarantine
from pipeline.train import Run
from shards.files import naming
from shards.index import Index


class Evaluator:
    """Evaluates the weights of a run on a split, as often as it is asked."""

    def __init__(self, run: Run, log: Log, index: Index) -> None:
        self.index: Final = index
        self._run, self._log = run, log
        self._loader = evaluation_loader(run.job, index, run.accelerator)
        self._quarantine = Quarantine(log, index, run.accelerator)

    def evaluate(self, step: int, *, record: bool = True) -> dict[str, Score]:
        """Return the scores of the weights and their averages; `record` has them logged.

        Raises TrainingError as `_check`.
        """
        recipe, nets = self._run.job.recipe, self._run.weights.nets()
        shown = "ema" if "ema" in nets else "raw"
        gathering = Gathering(len(self.index), recipe.data.classes, self._run.accelerator)

        def note(predictions: Predictions) -> None:
            if predictions.net == shown:
                gathering.note(predictions.samples, predictions.labels, predictions.logits)

        scores, unusable = evaluate(nets, self._loader, self._run.accelerator, note)
        self._quarantine.note(unusable)
        self._quarantine.share()
        self._check(scores)
        if record:
            self._record(scores, step)
        answers = gathering.of_all()
        if self._log.main:
            self._find(shown, nets[shown], answers, step, show=record)
            if record and recipe.log.histograms:
                for weights, net in nets.items():
                    self._log.histograms(step, net, weights)
        return scores

    def _check(self, scores: Mapping[str, Score]) -> None:
        """Raise TrainingError where no sample can be used, or not all can and none may be left out."""
        index = self.index
        if self._run.job.recipe.data.strict and len(self._quarantine):
            raise TrainingError(
                f"{index.dataset}: {len(self._quarantine)} samples of {index.folder.name} cannot be used, and "
                f"--data.strict allows none. They are named in {self._log.folder.quarantine}; mend them."
            )
        if not next(iter(scores.values())).samples:
            raise TrainingError(
                f"{index.dataset}: none of the {len(index)} samples of {index.folder.name} can be used, so "
                f"that nothing can be evaluated. They are named in {self._log.folder.quarantine}; mend them: vitrail "
                f"shards verify {index.dataset}"
            )

    def _record(self, scores: Mapping[str, Score], step: int) -> None:
        split, epoch = self.index.folder.name, step / self._run.schedule.steps_per_epoch
        for weights, score in scores.items():
            values = score._asdict() | {f"top1_{head}": top1 for head, top1 in score.heads.items()}
            del values["heads"]
            self._log.record("eval", step, epoch, {"split": split, "weights": weights, **values})
            self._log.say(
                f"step {step}  {split} {weights:<3}  top-1 {score.top1:.4f}  top-5 {score.top5:.4f}  "
                f"loss {score.loss:.4f}  {score.samples}/{len(self.index)} samples"
                + "".join(f"  {head} head {top1:.4f}" for head, top1 in score.heads.items())
            )

    def _find(self, weights: str, net: nn.Module, answers: Answers, step: int, *, show: bool) -> None:
        """Keep what an evaluation found, beside its numbers."""
        assert self._run.job.dataset
        batches = EvaluationBatches(self._run.job.recipe, self.index)
        with closing(batches.reader):  # open files and a cache's locks; loader workers would inherit them
            found = find(net, weights, answers, batches, self._run.job.dataset.classes, step, self._run.device)
        with naming(self._log.folder.findings):
            write_findings(self._log.folder, found)
        if not (show and self._log.shows):
            return
        split, names = found.head["split"], found.head["classes"]
        self._log.picture(f"{split}/confusion", step, heat_map(found.head["confusion"], len(names)))
        wrong = [f"{names[one['answer']]} {one['probability']:.0%}\nis {names[one['label']]}"
                 for one in found.head["mistakes"]]  # fmt: skip
        self._log.pictures(f"{split}/most_confident_mistakes", step, found.mistakes, wrong)
        if found.attention is not None:
            rows = [(image, *(overlaid(image, maps[number]) for maps in found.attention))
                    for number, image in enumerate(found.looked_at)]  # fmt: skip
            said = [
                word for key in found.head["looked_at"] for word in (key, *(f"{t} token" for t in found.head["tokens"]))
            ]
            images = np.stack([image for row in rows for image in row])
            self._log.pictures(f"{split}/attention", step, images, said, len(rows[0]))
