"""One session of a run: from a checked request to a finished folder, or to the checkpoint it stops at."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import timm
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from pipeline import checkpoint
from pipeline.batch import EvaluationBatches, order_of
from pipeline.checkpoint import Snapshot, weights_sha256
from pipeline.config import Recipe, identity
from pipeline.evaluate import evaluation_loader
from pipeline.events import Evaluation, Events
from pipeline.finetune import fold_head_norm
from pipeline.hosting import (
    build_accelerator,
    cores_per_process,
    engine_of_launch,
    hosted,
    loader_workers,
    resolve_precision,
)
from pipeline.log import Log, rewind
from pipeline.models import shape
from pipeline.picture import draw_learnt
from pipeline.request import Request
from pipeline.spike import SpikeFound, Watch, steps_of
from pipeline.store import Store, fingerprint
from pipeline.teacher import Answers, build_teacher, teacher_weights
from pipeline.train import Run, build, train
from shards.dataset import Dataset
from shards.errors import BadRequest
from shards.files import atomic_write, write_json
from shards.index import Index

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75  # exit codes
LIBRARIES: Final = ("torch", "torchvision", "timm", "accelerate", "webdataset", "pillow", "numpy", "vitrail")


def run_recipe(request: Request, dataset: Dataset, *, quiet: bool = False) -> int:
    """Train, or go on training, and finish the run's folder; return the exit code.  `quiet` says nothing."""
    accelerator = build_accelerator(resolve_precision(request.recipe.precision), tf32=request.recipe.compute.tf32)
    spike: SpikeFound | None = None
    while True:
        try:
            code = run_phase(request, dataset, accelerator, spike, quiet=quiet)
        except SpikeFound as found:
            spike = found.with_traceback(None)  # which would keep the run's memory
        else:
            if code is not None:
                return code
            spike, request = None, replace(request, resume="auto")  # the next phase goes on from this one's end
        accelerator.free_memory()


def run_phase(
    request: Request, dataset: Dataset, accelerator: Accelerator, spike: SpikeFound | None, *, quiet: bool
) -> int | None:
    """Do what `run_recipe` does up to the end of a phase of fine-tuning; return None where another one is due.

    Raises SpikeFound where the run is to start again from before a spike, `spike` in the next call.
    """
    recipe, folder = request.recipe, request.folder
    main = accelerator.is_main_process
    say: Callable[[str], None] = print if main else lambda _: None
    fingerprints = {name: index.fingerprint for name, index in dataset.splits.items()}
    if recipe.distill.teacher:
        fingerprints["teacher"] = teacher_weights(recipe.distill)
    snapshot = restore(request, fingerprints, say, spike)
    step, before = (snapshot.step, snapshot.state) if snapshot else (0, {})
    left_out = spike.left_out(step, recipe) if spike else before.get("left_out", [])
    with alone_in(folder) if main else nullcontext():
        if main:
            rewind(folder, step)
            write_json(folder / "recipe.json", describe(recipe, fingerprints))
        accelerator.wait_for_everyone()
        workers = loader_workers(recipe.data.workers)
        train_index = dataset.splits["train"]
        run = build(
            recipe,
            train_index,
            accelerator,
            workers=workers,
            max_steps=request.max_steps,
            snapshot=snapshot,
            answers=open_answers(recipe, train_index, accelerator, fingerprints),
            left_out=steps_of(left_out),
        )
        if run.first_step == run.last_step == finished_steps(folder):
            say(f"{folder}: all {run.last_step} steps are done. To train anew, name another --output.")
            return DONE
        split = dataset.evaluation_split()
        evaluation = None
        if split:
            index = dataset.splits[split]
            evaluation = Evaluation(index, evaluation_loader(recipe, index, accelerator, workers))
        state = {"recipe": asdict(recipe), "fingerprints": fingerprints}
        options = {
            "main": main,
            "process": accelerator.process_index,
            "trace": request.trace_samples,
            "quiet": quiet,
        }
        with Log(folder, step=step, last_step=run.last_step, **options) as log:
            log.say(introduction(request, run, workers, resumed=snapshot is not None))
            if split is None:
                log.say(f"{dataset.folder} has no split `val` or `test`: the run is not evaluated.")
            if spike:
                first, last = left_out[-1]
                epoch = first / run.order.steps_per_epoch
                log.record("event", first, epoch, {**spike.event, "left_out": [first, last]})
                log.say(f"{spike}. Gone back to step {step}; steps {first} to {last} are left out.")
            seconds, watch = before.get("wall_seconds", 0.0), Watch(recipe.spike, before.get("losses", ()))
            events = Events(run, log, evaluation, state, seconds=seconds, watch=watch, left_out=left_out)
            events.listen()
            try:
                stopped = train(run, events)
            finally:
                run.close()
            if stopped:
                log.say(f"Stopped on request; a checkpoint is saved. Start the same command again to go on: {folder}")
                return STOPPED
            if run.last_step < min(request.max_steps or run.total_steps, run.total_steps):
                return None
            finish(run, events, folder, dataset.classes)
    return DONE


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the run's folder and keep others out of it; a kill opens it again.

    Raises BadRequest if another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BadRequest([f"--output {folder}: another process is working on this run; stop it, or wait."]) from error


def open_answers(
    recipe: Recipe, index: Index, accelerator: Accelerator, fingerprints: dict[str, str]
) -> Answers | None:
    """Return where a recipe's answers of the teacher come from, None where it has no teacher."""
    distill = recipe.distill
    if not distill.teacher:
        return None
    store = None
    if distill.store:
        wanted = fingerprint(recipe, fingerprints["train"], fingerprints["teacher"])
        store = Store(Path(distill.store), order_of(recipe, index), 2 * distill.top or 1, wanted)
    return Answers(recipe, lambda: build_teacher(recipe).to(accelerator.device), store, accelerator.autocast)


def restore(
    request: Request, fingerprints: dict[str, str], say: Callable[[str], None], spike: SpikeFound | None
) -> Snapshot | None:
    """Return the checkpoint to start from, of before a spike if there is one; None for a fresh start.

    Raises BadRequest if it is of another recipe or other data, CheckpointError if none is whole.
    """
    named = None if request.resume in ("auto", "never") else Path(request.resume)
    snapshot = None
    if spike or not named:

        def fits(step: int) -> bool:
            return not spike or spike.may_start_from(step, request.recipe)

        snapshot = checkpoint.load_newest(request.folder / "checkpoints", say, fits)
    if named and not snapshot:
        snapshot = checkpoint.load(named)
    if snapshot is None:
        return None
    saved, wanted = identity(snapshot.state["recipe"]), identity(request.recipe)
    differing = [
        f"the checkpoint of step {snapshot.step} was made with {name} = {saved.get(name)}, the request says "
        f"{wanted.get(name)}. Go on with the former, or name another --output."
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    # an evaluation split may change: it has no part in the weights
    for source, what in (("train", "other training data"), ("teacher", "other weights of the teacher")):
        if snapshot.state["fingerprints"].get(source) != fingerprints.get(source):
            differing.append(f"the checkpoint of step {snapshot.step} was made with {what}.")
    if differing:
        raise BadRequest(differing)
    return snapshot


def finished_steps(folder: Path) -> int | None:
    """Return the steps that summary.json says are done, None where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text())["steps"] if path.exists() else None


def describe(recipe: Recipe, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return what recipe.json says: the resolved recipe, versions, git commit, fingerprints of the data."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)  # noqa: S607
    return {
        "recipe": asdict(recipe),
        "fingerprints": fingerprints,
        "versions": {library: version(library) for library in LIBRARIES},
        "git_commit": git.stdout.strip() or None,
    }


def introduction(request: Request, run: Run, workers: int, *, resumed: bool) -> str:
    """Return what a person should know of a run before its first step."""
    recipe, order = run.recipe, run.order
    processes = run.accelerator.num_processes
    shown = order.num_samples // (recipe.data.repeats if recipe.data.epoch == "views" else 1)
    scaled = f" = {recipe.optim.lr} x {recipe.batch}/{recipe.optim.lr_batch}" if recipe.optim.lr_batch else ""
    distill = recipe.distill
    taught = f"{distill.teacher}, {distill.loss} answers" + (f", stored in {distill.store}" if distill.store else "")
    trained = ", ".join(f"{part} {some:,} of {total:,}" for part, (some, total) in run.by_part.items() if some)
    shares = ", ".join(str(len(hosted(recipe.virtual_ranks, processes, p))) for p in range(processes))
    return "\n".join(
        [
            f"{recipe.name}: {recipe.model.name}, {sum(total for _, total in run.by_part.values()):,} parameters, "
            f"{recipe.data.classes} classes, {recipe.model.img_size} px",
            f"data      {request.data}: {order.num_samples:,} training images; an epoch is {order.steps_per_epoch} "
            f"steps of {recipe.batch} views, of about {shown:,} images shown {recipe.data.repeats} times",
            f"hosting   {recipe.virtual_ranks} virtual ranks of {recipe.rank_batch} images on {processes} "
            f"process(es) ({shares}), {engine_of_launch()}, {run.device.type} {resolve_precision(recipe.precision)}, "
            f"{len(run.hosted) * recipe.passes} micro-steps of {recipe.pass_batch}, "
            f"{workers} loader worker(s) and {cores_per_process()} core(s) each",
            f"schedule  {run.total_steps} steps, {recipe.epochs} epochs; peak rate {recipe.peak_lr:.2e}{scaled}",
            *([f"teacher   {taught}"] if distill.teacher else []),
            *([f"trained   {trained}"] if recipe.finetune.strategy != "full" else []),
            f"output    {request.folder}" + (f", going on after step {run.first_step}" if resumed else ""),
        ]
    )


def finish(run: Run, events: Events, folder: Path, classes: tuple[str, ...]) -> None:
    """Write the weights as timm loads them, a picture of what was learnt, and summary.json, the last file of a run."""
    recipe = run.recipe
    if events.evaluation and not events.scores:  # killed between the last checkpoint and the summary
        events.evaluate(run.last_step, record=False)
    nets = run.nets()
    if not events.log.main:
        return
    for name, net in nets.items():
        weights = fold_head_norm(net, net.state_dict())
        with atomic_write(folder / {"raw": "model.safetensors", "ema": "model_ema.safetensors"}[name]) as file:
            save_file({name: value.contiguous() for name, value in weights.items()}, file.name)
    write_json(folder / "config.json", timm_config(run, recipe))
    scores = events.scores
    summary = {
        "steps": run.last_step,
        "epochs": run.last_step / run.order.steps_per_epoch,
        "top1": scores["raw"].top1 if scores else None,
        "top1_ema": scores["ema"].top1 if "ema" in scores else None,
        "images_per_second": events.images_per_second,
        "wall_seconds": events.wall_seconds,
        "views_seen": (run.last_step - sum(step < run.last_step for step in run.left_out)) * recipe.batch,
        "parameters": sum(total for _, total in run.by_part.values()),
        "trained_parameters": sum(trained for trained, _ in run.by_part.values()),
        "weights_sha256": weights_sha256(nets["raw"].state_dict()),
    }
    shown = ""
    if events.evaluation:
        batches = EvaluationBatches(recipe, events.evaluation.split)
        shown = f"\npicture   {draw_learnt(folder, nets.get('ema', nets['raw']), batches, classes, run.device)}"
    write_json(folder / "summary.json", summary)
    curves = f"curves    tensorboard --logdir {folder / 'tensorboard'}"
    events.log.say(f"done      {folder / 'summary.json'}{shown}\n{curves}")


def timm_config(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Return config.json, by which `timm.create_model("local-dir:RUN")` builds the model."""
    model = recipe.model
    return {
        "architecture": timm.models.split_model_name_tag(model.name)[0],
        "num_classes": recipe.data.classes,
        "num_features": run.net.num_features,
        "pretrained_cfg": {
            "input_size": [3, model.img_size, model.img_size],
            "mean": model.mean,
            "std": model.std,
            "interpolation": "bicubic",
            "crop_pct": recipe.eval.crop_ratio,
            "num_classes": recipe.data.classes,
        },
        "model_args": shape(model),
    }
