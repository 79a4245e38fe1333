"""Runs, whole: as a user starts them, in this process where nothing but the numbers matters."""

import json
import math
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from launch.drill import small_disk
from pipeline import checkpoint
from pipeline.checkpoint import Writer
from pipeline.config import Finetune
from pipeline.data.batch import Batch, TrainingBatches
from pipeline.data.loader import StepSampler, load
from pipeline.errors import CheckpointError, TrainingError
from pipeline.folder import RunFolder
from pipeline.run import end, sentence
from pipeline.session import session
from pipeline.session.events import Events
from pipeline.session.session import Parts
from shards.dataset import Dataset
from shards.errors import BadRequest
from tests.running import PROGRAMS, SCRIPT, TIMEOUT, metrics, run, start, summary, traces, train_here
from tests.shards.test_locks import without_locks
from tests.tiny import HERE, STEPS, TINY

pytestmark = pytest.mark.slow  # whole runs

ROUNDING = 0.1 * TINY.optim.lr  # another order of additions, blown up by Adam, is far less than one step


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run on one process."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(SCRIPT, "--data", dataset.folder, "--output", folder, "--trace-samples")
    return folder


def test_a_run_leaves_what_the_design_promises(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == {
        "recipe.json", "metrics.jsonl", "summary.json", "checkpoints", "model.safetensors", "model_ema.safetensors",
        "config.json", "tensorboard", "trace", "learnt.png", "sessions.jsonl", ".lock", "findings",
    }  # fmt: skip
    train = metrics(unbroken, "train")
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert set(train[0]) == {
        "kind", "step", "epoch", "loss", "lr", "images_per_second", "data_wait", "grad_norm", "unusable", "memory_gib",
        "times",
    }  # fmt: skip
    evaluations = metrics(unbroken, "eval")
    assert [(line["weights"], line["samples"], line["split"]) for line in evaluations] == [
        ("raw", 21, "test"),
        ("ema", 21, "test"),
    ]
    done = summary(unbroken)
    assert (done["steps"], done["epochs"], done["views_seen"]) == (STEPS, 4, STEPS * 12)
    assert done["top1"] == evaluations[0]["top1"]
    assert [path.name for path in checkpoint.checkpoints(unbroken / "checkpoints")] == [
        f"step-{STEPS:08d}",
        f"step-{STEPS - 2:08d}",
    ]
    assert (unbroken / "checkpoints" / "latest").read_text() == f"step-{STEPS:08d}\n"
    described = json.loads((unbroken / "recipe.json").read_text())
    assert described["versions"]["timm"] == timm.__version__
    assert described["recipe"]["optim"]["lr"] == 1e-3


def test_timm_loads_the_folder_of_a_run(unbroken: Path) -> None:
    net = timm.create_model(f"local-dir:{unbroken}", pretrained=True)
    weights = load_file(unbroken / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert net.pretrained_cfg["crop_pct"] == 0.875


def test_tensorboard_shows_curves_and_pictures(unbroken: Path) -> None:
    events = EventAccumulator(str(RunFolder(unbroken).board))
    events.Reload()
    assert {"train/loss", "train/lr", "train/images_per_second", "train/data_wait"} <= set(events.Tags()["scalars"])
    assert "train/augmented" in events.Tags()["images"]
    assert len(events.Scalars("train/loss")) == STEPS


@pytest.mark.dist
def test_a_run_killed_at_several_steps_and_in_a_save_ends_with_the_same_weights(
    dataset: Dataset, unbroken: Path, tmp_path: Path
) -> None:
    script, folder = PROGRAMS / "killed.py", tmp_path / "run"
    arguments = ("--data", dataset.folder, "--output", folder, "--trace-samples")
    for moment in ("step 1", "step 6", "save 00000008", "step 13"):
        process = start(script, *arguments, env={"KILL": moment})
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == -signal.SIGKILL, err
    run(SCRIPT, *arguments)
    assert summary(folder)["weights_sha256"] == summary(unbroken)["weights_sha256"]
    assert traces(folder) == traces(unbroken)
    assert [line["step"] for line in metrics(folder, "train")] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in metrics(path, "train")] for path in (folder, unbroken)]
    assert losses[0] == losses[1]
    events = EventAccumulator(str(RunFolder(folder).board))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.dist
def test_two_processes_and_two_resumed_as_one_see_the_same_views_and_weights(
    dataset: Dataset, unbroken: Path, tmp_path: Path
) -> None:
    data = ("--data", dataset.folder, "--trace-samples")
    run(SCRIPT, *data, "--output", tmp_path / "two", processes=2)
    run(SCRIPT, *data, "--output", tmp_path / "mixed", "--max-steps", 7, processes=2)
    run(SCRIPT, *data, "--output", tmp_path / "mixed")
    one = load_file(unbroken / "model.safetensors")
    for folder in (tmp_path / "two", tmp_path / "mixed"):
        assert traces(folder) == traces(unbroken)
        other = load_file(folder / "model.safetensors")
        assert max((one[name] - other[name]).abs().max().item() for name in one) < ROUNDING
        for ours, theirs in zip(metrics(folder, "train"), metrics(unbroken, "train"), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    two = metrics(tmp_path / "two", "eval")
    assert [line["samples"] for line in two] == [21, 21]
    assert [line["top1"] for line in two] == [line["top1"] for line in metrics(unbroken, "eval")]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_same_weights(
    dataset: Dataset, unbroken: Path, tmp_path: Path, micro_batch: int
) -> None:
    train_here(dataset, tmp_path, replace(HERE, micro_batch=micro_batch))
    one, other = (load_file(folder / "model.safetensors") for folder in (unbroken, tmp_path))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < ROUNDING
    losses = [[line["loss"] for line in metrics(folder, "train")] for folder in (unbroken, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.dist
def test_three_processes_that_go_on_end_with_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    """Three gradients, unlike two, add up to another number in another order."""
    for name, last_steps in (("unbroken", (6,)), ("broken", (3, 6))):
        for last in last_steps:
            data = ("--data", dataset.folder, "--data.workers", 0, "--max-steps", last)
            run(SCRIPT, *data, "--output", tmp_path / name, processes=3)
    one, two = (summary(tmp_path / name)["weights_sha256"] for name in ("unbroken", "broken"))
    assert one == two


def test_an_optimizer_that_counts_its_steps_by_group_is_resumed_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(HERE, optim=replace(HERE.optim, name="lamb"))  # `test_every_optimizer.py` has all
    train_here(dataset, tmp_path / "unbroken", recipe, max_steps=6)
    for step in (4, 6):
        train_here(dataset, tmp_path / "resumed", recipe, max_steps=step)
    hashes = [summary(tmp_path / folder)["weights_sha256"] for folder in ("unbroken", "resumed")]
    assert hashes[0] == hashes[1]


def test_loader_workers_do_not_change_a_bit(dataset: Dataset, unbroken: Path, tmp_path: Path) -> None:
    train_here(dataset, tmp_path)
    assert summary(tmp_path)["weights_sha256"] == summary(unbroken)["weights_sha256"]


@pytest.mark.dist
def test_a_request_to_stop_saves_and_the_same_command_goes_on(dataset: Dataset, unbroken: Path, tmp_path: Path) -> None:
    arguments = ("--data", dataset.folder, "--output", tmp_path / "run", "--checkpoint.every-steps", 0)
    process = start(PROGRAMS / "killed.py", *arguments, env={"KILL": "slowly"})
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not metrics(tmp_path / "run", "train"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # a second request changes nothing
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75, out + err
    assert "Stopped on request; a checkpoint is saved" in out
    assert "Traceback" not in err
    said = (
        r"(Ctrl-C|SIGTERM): finishing step \d+( or \d+)?, then saving and stopping. \1 again, after 2 s, ends at once"
    )
    assert re.search(said, err)
    (event,) = metrics(tmp_path / "run", "event")
    assert event["event"] == "stopped on request"
    assert (tmp_path / "run" / "checkpoints" / f"step-{event['step']:08d}").is_dir()
    run(SCRIPT, *arguments)
    assert summary(tmp_path / "run")["weights_sha256"] == summary(unbroken)["weights_sha256"]


def test_a_folder_that_another_process_works_in_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock(print), pytest.raises(BadRequest, match="another process is working on this run"):
        train_here(dataset, tmp_path)
    assert not (tmp_path / "recipe.json").exists()


def test_a_folder_without_locks_says_so_and_names_who_works_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    said: list[str] = []
    words = rf"another process is working on this run. It is process {os.getpid()} of .* remove .*\.lock\.soft"
    with RunFolder(tmp_path).lock(said.append):
        assert RunFolder(tmp_path).strangers() == []
        with pytest.raises(BadRequest, match=words), RunFolder(tmp_path).lock(print):
            pass
    assert "its file system has no locks" in said[0]


def test_a_run_that_goes_on_is_not_said_to_be_done(dataset: Dataset, tmp_path: Path) -> None:
    class Looking(Events):
        def after_batch(self, batch: Batch, images: Tensor | None) -> None:
            assert not self.log.folder.summary.exists()
            super().after_batch(batch, images)

    train_here(dataset, tmp_path, max_steps=1)
    assert summary(tmp_path)["steps"] == 1
    train_here(dataset, tmp_path, HERE, Parts(events=Looking), max_steps=2)
    assert summary(tmp_path)["steps"] == 2


def test_processes_that_find_different_checkpoints_do_not_go_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(dataset, tmp_path, max_steps=1)
    # another node sees an older folder
    monkeypatch.setattr(session, "gather_object", lambda said: [*said, 0] if said == [1] else said)
    with pytest.raises(TrainingError, match=r"process 0 at 1, process 1 at 0\)\. --output must be one folder"):
        train_here(dataset, tmp_path, max_steps=2)


def test_another_recipe_is_refused_with_the_fields_that_differ(dataset: Dataset, tmp_path: Path) -> None:
    train_here(dataset, tmp_path, max_steps=2)
    with pytest.raises(BadRequest) as caught:
        train_here(dataset, tmp_path, replace(HERE, seed=1, optim=replace(HERE.optim, lr=0.5)))
    found = str(caught.value)
    assert "optim.lr = 0.001, the request says 0.5" in found
    assert "seed = 0, the request says 1" in found
    with pytest.raises(BadRequest, match="holds a run already"):
        train_here(dataset, tmp_path, resume="never")


@pytest.mark.parametrize("damage", ["torn", "altered", "state"])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    dataset: Dataset, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    newest = folder / "checkpoints" / f"step-{STEPS:08d}"
    if damage == "torn":
        os.truncate(newest / "model.safetensors", 1000)
    elif damage == "altered":
        with (newest / "optimizer.safetensors").open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"\x01\x02\x03")
    else:
        text = (newest / "state.json").read_text()
        (newest / "state.json").write_text(text.replace('"wall_seconds": ', '"wall_seconds": 1'))
    train_here(dataset, folder)
    said = capsys.readouterr().out
    assert "torn or altered" in said
    assert f"Set aside: {newest.name}. They lie in {folder / 'left-1'}" in said
    assert (folder / "left-1" / newest.name).is_dir()
    assert summary(folder)["weights_sha256"] == summary(unbroken)["weights_sha256"]


def test_with_no_whole_checkpoint_the_run_says_so_and_stops(dataset: Dataset, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        os.truncate(path / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints is whole"):
        train_here(dataset, folder)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_samples(dataset: Dataset, tmp_path: Path) -> None:
    wild = replace(
        HERE, optim=replace(HERE.optim, lr=1e38, warmup_epochs=0), checkpoint=replace(HERE.checkpoint, every_steps=1)
    )
    with pytest.raises(
        TrainingError, match=r"step \d+: the (loss|gradient) is not finite.*Samples: virtual rank.*step-\d"
    ) as caught:
        train_here(dataset, tmp_path, wild)
    step = int(str(caught.value).split()[1].rstrip(":"))
    newest = checkpoint.load(checkpoint.checkpoints(tmp_path / "checkpoints")[0])
    assert newest.step <= step
    (event,) = metrics(tmp_path, "event")
    assert "is not finite" in event["event"]
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path, "train"))
    assert not (tmp_path / "summary.json").exists()


def test_a_bad_sample_is_replaced_named_and_counted(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    index = dataset.splits["train"]
    with (folder / "train" / "000001.tar").open("r+b") as file:
        file.seek(int(index.rows["offset"][20]) + 30)
        file.write(b"\0\0\0\0")
    damaged = replace(dataset, folder=folder)
    every_image = replace(HERE, data=replace(HERE.data, epoch="images", max_bad=0.02), epochs=1)
    train_here(damaged, tmp_path / "run", every_image)
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines())
    assert (line["split"], line["shard"], line["key"]) == ("train", "000001.tar", "000020")
    assert "CRC" in line["reason"]
    with pytest.raises(TrainingError, match=r"1 of 70 training samples cannot be used.*--data.max-bad"):
        train_here(damaged, tmp_path / "strict", replace(every_image, data=replace(every_image.data, max_bad=0.001)))


def test_a_finished_run_is_left_as_it_is(
    dataset: Dataset, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    assert train_here(dataset, folder) == 0
    assert "all 20 steps are done" in capsys.readouterr().out
    for name in ("metrics.jsonl", "summary.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()


@pytest.mark.dist
def test_a_wrong_request_ends_with_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    result = run(SCRIPT, "--data", tmp_path / "none", "--batc", 3, "--output", tmp_path / "run", code=2)
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n  - ") == 2
    assert "did you mean --batch?" in result.stderr


@pytest.mark.dist
def test_the_memory_of_loader_workers_does_not_grow(dataset: Dataset) -> None:
    # 160 epochs of 5 steps; a worker that kept its epochs' orders or images would grow
    recipe = replace(TINY, epochs=160)
    others = set(psutil.Process().children())
    sampler = StepSampler(range(800), range(3))
    batches = iter(load(TrainingBatches(recipe, dataset.splits["train"]), sampler, workers=1, pin_memory=False))
    (worker,) = set(psutil.Process().children()) - others
    sizes = []
    for number, _ in enumerate(batches):
        if number % 600 == 0:
            sizes.append((worker.memory_info().rss, psutil.Process().memory_info().rss))
    grown = [last - first for first, last in zip(sizes[1], sizes[-1], strict=True)]
    assert max(grown) < 8e6


@pytest.mark.dist
def test_processes_that_find_the_folder_taken_end_together(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock(print):
        ended = run(SCRIPT, "--data", dataset.folder, "--output", tmp_path, processes=2, code=1)
    assert ended.stderr.count("another process is working on this run") == 1


def test_a_request_to_stop_that_comes_while_a_run_is_built_is_not_lost(dataset: Dataset, tmp_path: Path) -> None:
    class SignalledAtItsStart(Events):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    # the head's phase alone would be over before another one asks
    recipe = replace(HERE, finetune=Finetune(strategy="gradual", head_epochs=0.2), epochs=2)
    assert train_here(dataset, tmp_path, recipe, Parts(events=SignalledAtItsStart)) == 75
    (event,) = metrics(tmp_path, "event")
    assert event["step"] == 1


@pytest.mark.dist
def test_a_process_that_lost_another_says_so_first(dataset: Dataset, tmp_path: Path) -> None:
    options = ("--data", dataset.folder, "--output", tmp_path / "run", "--data.workers", 0)
    ended = run(PROGRAMS / "killed.py", *options, processes=2, code=1, env={"KILL": "step 3 of process 1"})
    said, _, traceback = ended.stderr.partition("Traceback")
    assert "process 0 lost another process of the run. See what that one said" in said
    assert traceback
    (session,) = (json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines())
    assert session["ended"].startswith("failed: ")


def test_a_disk_that_is_full_at_the_end_is_named_with_what_to_do(dataset: Dataset, tmp_path: Path) -> None:
    class FullAtTheEnd(Events):
        def save(self, step: int, *, wait: bool) -> None:
            super().save(step, wait=wait)
            if wait:
                with suppress(OSError), (self.log.folder.path / "ballast").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))

    with small_disk(tmp_path, 4_000_000) as mounted:
        if not mounted:
            pytest.skip("a small disk needs root")
        with pytest.raises(OSError, match="No space left on device") as caught:
            train_here(dataset, tmp_path / "run", HERE, Parts(events=FullAtTheEnd), max_steps=2)
        wanted = f"{tmp_path}/run/model.safetensors: No space left on device. Mend it, or make room"
        assert sentence(caught.value).startswith(wanted)
        (tmp_path / "run" / "ballast").unlink()
        assert train_here(dataset, tmp_path / "run", HERE, max_steps=2) == 0


def move_away(folder: Path) -> None:
    """Remove a run's folder at once: file by file, a thread would write new ones between."""
    folder.rename(folder.with_name("removed"))


class RemovedByAStep(Events):
    """Has the run's folder vanish while a checkpoint may be written."""

    def after_batch(self, batch: Batch, images: Tensor | None) -> None:
        super().after_batch(batch, images)
        if (batch.step, batch.virtual_rank) == (3, 0):
            move_away(self.log.folder.path)


class RemovedAtACheckpoint(Writer):
    """Has the run's folder vanish before a file of a checkpoint."""

    def write_file(self, tensors: dict[str, Tensor], path: Path) -> None:
        if path.stem == "optimizer":
            move_away(path.parents[2])
        super().write_file(tensors, path)


@pytest.mark.parametrize("parts", [Parts(events=RemovedByAStep), Parts(writer=RemovedAtACheckpoint)])
def test_a_folder_that_is_removed_under_a_run_ends_it(parts: Parts, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        train_here(dataset, tmp_path / "run", HERE, parts)
    assert re.match(rf"{tmp_path}/run/\S+: gone while the run was writing it\. Mend it", sentence(caught.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/.latest.host.1.tmp"])
def test_a_file_whose_folder_is_gone_is_said_to_be(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / name
    with pytest.raises(FileNotFoundError) as caught:
        path.mkdir()
    assert sentence(caught.value).startswith(f"{path}: gone while the run was writing it. ")
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "run" / "a").read_text()
    assert sentence(caught.value).startswith(f"{tmp_path}/run/a: No such file or directory. ")


def test_a_process_does_not_wait_at_its_end_for_a_worker_that_no_signal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(SystemExit):
        end(75)
    monkeypatch.setattr("pipeline.run.active_children", lambda: ["a worker"])
    with pytest.raises(SystemExit):  # os._exit came back
        end(1)
    assert left == [1]
