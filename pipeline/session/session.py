"""One session of a run: from a job to a finished folder, or to the checkpoint it stops at."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save as serialized

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot, Writer
from pipeline.data.batch import EvaluationBatches
from pipeline.data.shuffle import shuffle_of
from pipeline.data.version import processor_note
from pipeline.errors import CheckpointError, TrainingError
from pipeline.fields import differing
from pipeline.fingerprints import DATA, START, weights_sha256
from pipeline.hosting import build_accelerator
from pipeline.job import Job
from pipeline.micro_batch import MicroBatch
from pipeline.model.finetune import fold_head_norm
from pipeline.model.hub import timm_config
from pipeline.session.best import Best, Record
from pipeline.session.evaluator import Evaluator
from pipeline.session.events import Events, StopRequest
from pipeline.session.log import Log
from pipeline.session.picture import draw_learnt
from pipeline.session.profiler import Profiler
from pipeline.session.provenance import begin_session
from pipeline.session.spike import Span, SpikeFound, Watch, steps_of
from pipeline.train import Run, build, train
from shards.errors import BadRequest, Problem, VitrailError, harmless
from shards.files import atomic_write, naming, write_json

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75  # exit codes
NO_PROMISE: Final = "--compute.no-deterministic: a resumed run, or a second one, need not be equal bit for bit"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """What a session is made of beside the run: handed in, so that a drill or a test can take others."""

    events: type[Events] = Events
    writer: Callable[[], Writer] = Writer


PARTS: Final = Parts()


def run_job(job: Job, parts: Parts = PARTS, *, quiet: bool = False) -> int:
    """Train, or go on training, and finish the run's folder; return the exit code.  `quiet` leaves out the log."""
    stop = StopRequest(speaks=job.hosting.main)
    with stop.listening():
        return run_session(job, parts, stop, quiet=quiet)


def run_session(job: Job, parts: Parts, stop: StopRequest, *, quiet: bool) -> int:
    """Do what `run_job` says, until a request to stop."""
    accelerator = build_accelerator(job.hosting, job.recipe.compute)
    job = share_fingerprints(job)
    say: Say = (lambda text: print(harmless(text))) if job.hosting.main else lambda _: None
    with locked(job, say):
        main_alone(job, lambda: job.folder.mend(say))
        if job.named and job.begun:
            say(
                f"--resume {job.named}: the run began from there already, and goes on from its own newest checkpoint. "
                f"To begin from there once more, remove the later ones, or name another --output."
            )
        snapshot = restore(job, say)
        main_alone(job, lambda: leave(job, snapshot, say))
        job = ended_at_plateau(job, snapshot)
        first_step = snapshot.step if snapshot else 0
        if is_done(job, first_step):
            say(f"{job.folder}: all {first_step} steps are done. To train anew, name another --output.")
            return DONE
        session = Session(job, accelerator, MicroBatch(job, accelerator), parts, stop, quiet, to_step=first_step)
        with recorded(session):
            spike: SpikeFound | None = None
            while True:
                try:
                    code = run_phase(session, snapshot, spike)
                except SpikeFound as found:
                    spike = found.with_traceback(None)  # which would keep the run's memory
                else:
                    spike = None
                    if code is not None:
                        session.ended = "done" if code == DONE else "stopped on request"
                        return code
                accelerator.free_memory()
                snapshot = restore(replace(job, begun=True), say, spike)


@dataclass
class Session:
    """One start of a run: what it works with, how far it came, and how it ended."""

    job: Job
    accelerator: Accelerator
    micro_batch: MicroBatch
    parts: Parts
    stop: StopRequest
    quiet: bool
    to_step: int
    ended: str = ""


def run_phase(session: Session, snapshot: Snapshot | None, spike: SpikeFound | None) -> int | None:
    """Build, train and finish a phase of fine-tuning, most often the only one; return None where another is due.

    Raises SpikeFound where the run is to start again from before a spike, `spike` in the next call.
    """
    job, accelerator, hosting = session.job, session.accelerator, session.job.hosting
    step, saved = (snapshot.step, snapshot.state) if snapshot else (0, {})
    skipped = spike.skipped_steps(step, job.recipe) if spike else saved.get("skipped_steps", [])
    if hosting.main:
        job.folder.rewind(step)
        checkpoint.remove_beyond(job.folder.checkpoints, step)  # those of the clock, on the way to a spike
    accelerator.wait_for_everyone()
    run = build(job, accelerator, session.micro_batch, snapshot=snapshot, skipped_steps=steps_of(skipped))
    if snapshot:
        snapshot.tensors.clear()  # as large as the run's own, which has them now
    writer = session.parts.writer()
    with Log(
        job.folder,
        step=step,
        last_step=run.last_step,
        process=hosting.process,
        trace=job.trace_samples,
        quiet=session.quiet,
        trackers=job.recipe.log.trackers,
    ) as log:
        evaluator = evaluator_of(run, log)
        log.describe(job.recipe, evaluator.index.folder.name if evaluator else None)
        introduce(job, run, log, spike, skipped, resumed=snapshot is not None)
        profiler = Profiler(log, job.recipe.log.profile, step) if job.recipe.log.profile and hosting.main else None
        events = session.parts.events(
            run,
            log,
            evaluator,
            writer,
            {"recipe": asdict(job.recipe), "identity": job.identity},
            stop=session.stop,
            seconds=saved.get("wall_seconds", 0.0),
            watch=Watch(job.recipe.spike, saved.get("losses", ())),
            best=best_of(job, saved.get("best")),
            skipped=skipped,
            trained=saved.get("trained"),
            profiler=profiler,
        )
        try:
            with profiler or nullcontext():
                stopped = train(run, events)
        except BaseException:
            with suppress(CheckpointError, OSError):  # which would hide what ended the training
                writer.wait()
            raise
        finally:
            run.feed.close()
            session.to_step = events.finished
        if events.best.at_plateau:
            run.last_step = events.finished
        elif stopped:
            log.say(f"Stopped on request; a checkpoint is saved. Start the same command again to go on: {job.folder}")
            return STOPPED
        elif run.last_step < run.schedule.last_step(run.first_step, job.max_steps):
            return None
        finish(job, run, events)
    return DONE


def share_fingerprints(job: Job) -> Job:
    """Return the job with what the main process found; all processes must ask.

    It alone hashed the files of weights, and a network file system may show others the run's folder of a moment before.
    Raises BadRequest where a process has found other data under the same name.
    """
    shared: list[Any] = [dict(job.fingerprints), job.begun]
    broadcast_object_list(shared)
    data = gather_object([job.fingerprints[DATA]])
    if others := [process for process, found in enumerate(data) if found != data[0]]:
        raise BadRequest.of(
            "data",
            f"--data {job.data}: process {others[0]} finds other data there than process 0. Name what is the same on "
            f"all nodes, or copy it again.",
        )
    return replace(job, fingerprints=shared[0], begun=shared[1])


def main_alone(job: Job, action: Callable[[], object]) -> None:
    """Do something in the main process; where it fails, fail alike in all of them, which would wait for it for good."""
    failed: list[VitrailError | OSError | None] = [None]
    if job.hosting.main:
        try:
            action()
        except (VitrailError, OSError) as error:
            failed = [error]
    broadcast_object_list(failed)
    if failed[0]:
        raise failed[0]


@contextmanager
def locked(job: Job, say: Say) -> Iterator[None]:
    """Keep others out of the run's folder; nothing in it is read before."""
    with ExitStack() as stack:
        main_alone(job, lambda: stack.enter_context(job.folder.lock(say)))
        yield


@contextmanager
def recorded(session: Session) -> Iterator[None]:
    """Record a session from its beginning to its end, however that comes."""
    job, device = session.job, session.accelerator.device
    main_alone(job, lambda: begin_session(job, device, session.micro_batch.size, session.to_step))
    try:
        yield
    except BaseException as error:
        session.ended = ": ".join(["failed", type(error).__name__, *str(error).splitlines()[:1]])
        if job.hosting.main:
            with suppress(OSError):  # on a full disk: what ended the session says so, and what to do
                job.folder.end_session(session.to_step, session.ended)
        raise
    if job.hosting.main:
        job.folder.end_session(session.to_step, session.ended)


def restore(job: Job, say: Say, spike: SpikeFound | None = None) -> Snapshot | None:
    """Return the checkpoint to start from, of before a spike if there is one; None for a fresh start.

    It is the run's own newest one, or the one that `--resume` names as long as the run has not begun from that.
    Raises BadRequest if it is of another recipe or other data, CheckpointError if none is whole, TrainingError where
    processes find different ones.
    """
    snapshot = None
    if job.begun or not job.named:

        def fits(step: int) -> bool:
            return not spike or spike.may_start_from(step, job.recipe)

        snapshot = checkpoint.load_newest(job.folder.checkpoints, say, fits)
    if job.named and not snapshot:
        snapshot = checkpoint.load(job.named)
    steps = gather_object([snapshot.step if snapshot else 0])
    if len({*steps}) > 1:
        found_at = ", ".join(f"process {process} at {step}" for process, step in enumerate(steps))
        raise TrainingError(
            f"{job.folder}: processes find different newest checkpoints ({found_at}). --output must be one folder that "
            f"all nodes see alike; start the same command again once they do."
        )
    if snapshot is None:
        return None
    saved, wanted = snapshot.state["identity"], job.identity
    found = [
        Problem(
            name,
            f"the checkpoint of step {snapshot.step} was made with {name} = {saved.get(name)}, the request says "
            f"{wanted.get(name)}. Go on with the former, or name another --output.",
        )
        for name in differing(saved, wanted)
        # a file of starting weights may be gone: it has done its part
        if not (name == START and wanted[name] is None and job.recipe.model.weights)
    ]
    if found:
        raise BadRequest(found)
    return snapshot


def leave(job: Job, snapshot: Snapshot | None, say: Say) -> None:
    """Set aside the checkpoints of the run's folder that it does not go on from: of a branch that it leaves, or torn.

    Retention would count them as the newest, and the next start take one of them.
    """
    folder, step = job.folder, snapshot.step if snapshot else 0
    elsewhere = job.named and not job.begun and job.named.resolve().parent != folder.checkpoints.resolve()
    if left := checkpoint.beyond(folder.checkpoints, -1 if elsewhere else step):
        aside = folder.leave(left)
        names = ", ".join(path.name for path in left)
        say(
            f"{folder}: the run goes on from step {step}, {'of another folder' if elsewhere else 'before its newest'}. "
            f"Set aside: {names}. They lie in {aside} with what was logged; remove it when you need it no more."
        )


def best_of(job: Job, saved: Record | None) -> Best:
    """Return the best evaluation so far, of which a checkpoint lies in the run's folder."""
    settings = job.recipe.checkpoint
    there = saved and checkpoint.folder_of(job.folder.checkpoints, saved["step"]).is_dir()
    return Best(settings.best, job.recipe.eval.patience, saved if there else None)


def ended_at_plateau(job: Job, snapshot: Snapshot | None) -> Job:
    """Return the job, ended where its checkpoint lies if that is the end of a plateau already."""
    if snapshot and best_of(job, snapshot.state.get("best")).at_plateau:
        return replace(job, max_steps=snapshot.step)
    return job


def is_done(job: Job, step: int) -> bool:
    """Return whether the run's folder, with a checkpoint of a step, is finished to the last one that is asked for."""
    ended = job.folder.ended()
    return ended is not None and step == job.schedule.last_step(step, job.max_steps) == ended["steps"]


def evaluator_of(run: Run, log: Log) -> Evaluator | None:
    """Return what evaluates a run, None where its data set has no split for it."""
    dataset = run.job.dataset
    assert dataset
    split = dataset.evaluation_split()
    return Evaluator(run, log, dataset.splits[split]) if split else None


def introduce(
    job: Job, run: Run, log: Log, spike: SpikeFound | None, skipped: Sequence[Span], *, resumed: bool
) -> None:
    """Say what a person should know of a run before its first step, and what it goes back for."""
    log.say(introduction(job, run, resumed=resumed))
    if (
        job.hosting.main and job.index.known is not None and not job.recipe.data.balance
    ):  # else the labels come with the shards
        log.say(f"shuffle   {shuffle_of(job.order, job.index.known['label'])}")
    if job.dataset and job.dataset.evaluation_split() is None:
        log.say(f"{job.data} has no split `val` or `test`: the run is not evaluated.")
    if spike:
        first, last = skipped[-1]
        event = {**spike.event, "skipped_steps": [first, last]}
        log.record("event", first, first / run.schedule.steps_per_epoch, event)
        log.say(f"{spike}. Gone back to step {run.first_step}; steps {first} to {last} are skipped.")


def introduction(job: Job, run: Run, *, resumed: bool) -> str:
    """Return what a person should know of a run before its first step."""
    recipe, hosting, order, schedule = job.recipe, job.hosting, job.order, run.schedule
    shown = order.num_samples // (recipe.data.repeats if recipe.data.epoch == "views" else 1)
    scaled = f" = {recipe.optim.lr} x {recipe.batch}/{recipe.optim.lr_batch}" if recipe.optim.lr_batch else ""
    distill = recipe.distill
    taught = "; ".join(
        [
            f"{distill.teacher}, {distill.loss} outputs" + (f", stored in {distill.store}" if distill.store else ""),
            *([job.taught_by] if job.taught_by else []),
        ]
    )
    precision = f"{hosting.precision}, compiled" if hosting.compiled else hosting.precision
    shares = ", ".join(str(share) for share in hosting.shares(recipe.virtual_ranks))
    return "\n".join(
        [
            f"{recipe.name}: {recipe.model.name}, {job.parameter_count:,} parameters, {recipe.data.classes} classes, "
            f"{recipe.model.img_size} px",
            f"data      {job.data}: {order.num_samples:,} training images; an epoch is {order.steps_per_epoch} "
            f"steps of {recipe.batch} views, of about {shown:,} images shown {recipe.data.repeats} times",
            f"hosting   {recipe.virtual_ranks} virtual ranks of {recipe.rank_batch} images on {hosting.processes} "
            f"process(es) ({shares}), {hosting.engine}, {run.device.type} {precision}, "
            f"{run.micro_batch.count} micro-batch(es) of {run.micro_batch.size}, "
            f"{hosting.workers} loader worker(s) and {hosting.cores} core(s) each",
            *([f"processor {note}"] if (note := processor_note()) else []),
            *([] if recipe.compute.deterministic else [f"bits      {NO_PROMISE}"]),
            f"schedule  {schedule.total_steps} steps, {recipe.epochs} epochs; peak rate {recipe.peak_lr:.2e}{scaled}",
            *(
                [f"balance   every class equally often in the {order.num_samples:,} views of an epoch's line"]
                if recipe.data.balance
                else []
            ),
            *(
                [f"loss      class weights {min(job.class_weights):.3g} to {max(job.class_weights):.3g}"]
                if job.class_weights
                else []
            ),
            *([f"weights   {job.start}"] if job.start and not resumed else []),
            *([f"teacher   {taught}"] if distill.teacher else []),
            *([f"trained   {trained_parts(job)}"] if recipe.finetune.strategy != "full" else []),
            *(
                [f"cache     {job.rows.said(order.num_samples)}; {job.rows.count:,} images are there"]
                if job.rows
                else []
            ),
            *([stream(job, run.first_step)] if job.index.cache else []),
            f"output    {job.folder}" + (f", going on after step {run.first_step}" if resumed else ""),
        ]
    )


def stream(job: Job, step: int) -> str:
    """Return what has to come over the network before a run gets going, in words."""
    index, order = job.index, job.order
    assert index.cache
    samples = [order.views(step, rank).samples for rank in job.hosting.virtual_ranks_of_node(order.virtual_ranks)]
    first = {index.shard_of(sample) for of_rank in samples for sample in of_rank.tolist()}
    soon = job.shards_at(step)
    there = sum(index.cache.holds(index.tar(shard)) for shard in soon)
    size = sum(index.shards[shard].bytes for shard in soon)  # 0 where nobody said it
    return (
        f"stream    the first batch waits for {len(first)} shards, the windows that it begins span {len(soon)}"
        f"{f' of {size / 1e6:,.0f} MB' if size else ''}; {there} of them are in {index.cache.folder}, which holds up "
        f"to {index.cache.limit / 1e9:,.0f} GB"
    )


def trained_parts(job: Job) -> str:
    """Return how many parameters are trained, by part of the model."""
    parts = ", ".join(f"{part} {some:,} of {total:,}" for part, (some, total) in job.parameters.items() if some)
    head_steps = job.schedule.head_steps
    return f"the head alone for {head_steps} steps, then {parts}" if head_steps else parts


def finish(job: Job, run: Run, events: Events) -> None:
    """Write the weights as timm loads them, a picture of what was learnt, and summary.json, the last file of a run."""
    folder = job.folder
    if events.evaluator and not events.scores:  # killed between the last checkpoint and the summary
        events.evaluate(run.last_step, record=False)
    nets = run.weights.nets()
    if not job.hosting.main:
        return
    best, top1 = events.best.record, {name: score.top1 for name, score in events.scores.items()}
    if best and best["step"] != run.last_step:
        try:
            kept = checkpoint.load(checkpoint.folder_of(folder.checkpoints, best["step"]))
            nets, top1 = run.weights.nets_of(kept.tensors), best["scores"]
        except CheckpointError as error:
            events.log.say(f"{error} Exporting the newest weights instead of the best.")
            best = None
    for name, net in nets.items():
        weights = fold_head_norm(net, net.state_dict())
        with atomic_write(folder.weights if name == "raw" else folder.averaged(name)) as file:
            file.write(serialized({name: value.contiguous() for name, value in weights.items()}))
    names = job.dataset.classes if job.dataset else ()
    write_json(folder.timm_config, timm_config(job.recipe, names, run.weights.net.num_features))
    skipped = sum(step < run.last_step for step in run.skipped_steps)
    summary = {
        "steps": run.last_step,
        "epochs": run.last_step / run.schedule.steps_per_epoch,
        "exported_step": best["step"] if best else run.last_step,
        "best": best,
        "top1": top1.get("raw"),
        "top1_ema": top1.get("ema"),
        **{f"top1_{name}": top1.get(name) for name in job.recipe.ema.decays},
        "images_per_second": events.images_per_second,
        "wall_seconds": events.wall_seconds,
        "views_seen": (run.last_step - skipped) * job.recipe.batch,
        "parameters": job.parameter_count,
        "trained_parameters": job.trained_parameters,
        "weights_sha256": weights_sha256(nets["raw"].state_dict()),
    }
    shown = ""
    if events.evaluator and job.dataset:
        batches = EvaluationBatches(job.recipe, events.evaluator.index)
        with closing(batches.reader), naming(folder.picture):
            picture = draw_learnt(folder, nets.get("ema", nets["raw"]), batches, job.dataset.classes, run.device)
        shown = f"\npicture   {picture}"
    events.log.finished()
    write_json(folder.summary, summary)
    if events.tally.proven:
        since = f", since step {events.tally.since}" if events.tally.since else ""
        events.log.say(f"views     all {events.tally.proven:,} as the order has them{since}")
    if best:
        events.log.say(f"exported  the best: {events.best}; the newest is of step {run.last_step}")
    events.log.say(f"done      {folder.summary}{shown}\ncurves    tensorboard --logdir {folder.tensorboard}")
