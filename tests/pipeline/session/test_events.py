"""What happens beside the steps: checkpoints by the clock, samples that cannot be used, and requests to stop."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline import checkpoint
from pipeline.checkpoint import Tensors, Writer
from pipeline.data.batch import Unusable
from pipeline.data.loader import STOP_SIGNALS
from pipeline.errors import TrainingError
from pipeline.folder import RunFolder
from pipeline.session import events
from pipeline.session.events import FORWARDED, Events, StopRequest
from pipeline.session.log import Log
from pipeline.session.quarantine import Quarantine
from pipeline.session.session import Parts
from shards.dataset import Dataset, read_dataset
from shards.files import read_json_lines
from tests.running import ENVIRONMENT, PROGRAMS, TIMEOUT, metrics, start, train_here
from tests.tiny import HERE

SECONDS = 25  # that a step takes


def saves(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch, *, minutes: float, logged: int, steps: int = 10
) -> list[int]:
    """Train on a clock of our own, and return the steps at which checkpoints were saved."""
    now, saved = [1000.0], []

    class Ticking(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            now[0] += SECONDS
            return super().after_step(step, losses, agreed, norm)

    class Noting(Writer):
        def save(
            self,
            root: Path,
            step: int,
            state: Mapping[str, Any],
            tensors: Mapping[str, Tensors],
            keep: int,
            spare: int = 0,
            best: int | None = None,
        ) -> None:
            saved.append(step)
            super().save(root, step, state, tensors, keep, spare, best)

    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now[0]))
    recipe = replace(
        HERE,
        checkpoint=replace(HERE.checkpoint, every_steps=0, every_minutes=minutes),
        log=replace(HERE.log, every_steps=logged),
    )
    parts = Parts(events=Ticking, writer=Noting)
    assert train_here(dataset, folder, recipe, parts, max_steps=steps) == 0
    newest = checkpoint.checkpoints(folder / "checkpoints")
    assert [checkpoint.step_of(path) for path in newest] == saved[:-3:-1]
    return saved


@pytest.mark.slow
def test_a_checkpoint_is_saved_as_often_as_the_clock_says(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=1, logged=1) == [3, 6, 9, 10]


@pytest.mark.slow
def test_where_nothing_is_logged_the_clocks_checkpoint_comes_one_step_later_and_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=1, logged=100) == [4, 8, 10]


@pytest.mark.slow
def test_nothing_is_saved_by_a_clock_that_is_off(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saves(dataset, tmp_path, monkeypatch, minutes=0, logged=1) == [10]


@pytest.mark.slow
def test_nothing_is_saved_before_the_minutes_have_passed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = 11 * SECONDS / 60
    assert saves(dataset, tmp_path, monkeypatch, minutes=minutes, logged=1) == [10]


def tars_open() -> list[str]:
    return sorted(file.path for file in psutil.Process().open_files() if file.path.endswith(".tar"))


def test_evaluations_leave_no_file_open(dataset: Dataset, tmp_path: Path) -> None:
    left: list[list[str]] = []

    class Looking(Events):
        def evaluate(self, step: int, *, record: bool = True) -> None:
            super().evaluate(step, record=record)
            left.append([path for path in tars_open() if "/test/" in path])

    recipe = replace(HERE, eval=replace(HERE.eval, every_steps=1))
    before = tars_open()
    assert train_here(dataset, tmp_path, recipe, Parts(events=Looking), max_steps=4) == 0
    assert [len(paths) for paths in left] == [len(dataset.splits["test"].shards)] * 4  # those of the loader
    gc.collect()
    assert tars_open() == before


def a_quarantine(dataset: Dataset, folder: Path, *, quiet: bool = True) -> tuple[Quarantine, Log]:
    log = Log(RunFolder(folder), step=0, last_step=1, process=0, trace=False, quiet=quiet)
    return Quarantine(log, dataset.splits["train"], Accelerator(cpu=True)), log


def named(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(RunFolder(folder).quarantine, dict[str, Any]).good


def test_an_unusable_sample_is_counted_and_named_once_however_often_it_is_met(dataset: Dataset, tmp_path: Path) -> None:
    quarantine, log = a_quarantine(dataset, tmp_path)
    with log:
        quarantine.note([Unusable(20, "torn"), Unusable(5, "no image"), Unusable(20, "torn")])
        assert quarantine.has_news
        assert len(quarantine) == 0  # until all processes know
        quarantine.share()
        assert len(quarantine) == 2
        quarantine.note([Unusable(20, "torn")])
        assert not quarantine.has_news
        quarantine.share()
        assert len(quarantine) == 2
    index = dataset.splits["train"]
    assert named(tmp_path) == [
        {
            "split": "train",
            "shard": shard,
            "key": index.key(sample),
            "offset": int(index.rows["offset"][sample]),
            "reason": reason,
        }
        for sample, shard, reason in ((5, "000000.tar", "no image"), (20, "000001.tar", "torn"))
    ]


def test_a_session_counts_what_earlier_ones_met_and_does_not_name_it_again(damaged: Dataset, tmp_path: Path) -> None:
    quarantine, log = a_quarantine(damaged, tmp_path)
    with log:
        quarantine.note([Unusable(3, "no image")])
        quarantine.share()
    again, log = a_quarantine(damaged, tmp_path)
    with log:
        assert len(again) == 1
        again.note([Unusable(3, "no image"), Unusable(33, "torn")])
        again.share()
        assert len(again) == 2
    assert [line["reason"] for line in named(tmp_path)] == ["no image", "torn"]


def test_a_session_counts_no_more_what_was_mended_since(
    dataset: Dataset, damaged: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quarantine, log = a_quarantine(damaged, tmp_path)
    with log:
        quarantine.note([Unusable(3, "torn"), Unusable(33, "torn"), Unusable(63, "torn")])
        quarantine.share()
    other = {"split": "test", "shard": "000000.tar", "key": "000003", "offset": 0, "reason": "torn"}
    gone = {"split": "train", "shard": "000009.tar", "key": "000003", "offset": 0, "reason": "torn"}
    with RunFolder(tmp_path).quarantine.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in (other, gone)))
    shutil.copy(dataset.folder / "train" / "000002.tar", damaged.folder / "train")
    (damaged.folder / "train" / "000003.tar").unlink()
    again, log = a_quarantine(damaged, tmp_path, quiet=False)
    with log:
        assert len(again) == 2
        again.note([Unusable(3, "torn")])
        assert not again.has_news
    assert [(line["split"], line["key"]) for line in named(tmp_path)] == [
        ("train", "000003"),
        ("train", "000063"),
        ("test", "000003"),
    ]
    said = "2 unusable samples of train are mended or gone, and count no more: '000002.tar 000033', '000009.tar 000003'"
    assert said in capsys.readouterr().out


def test_all_processes_count_what_the_first_of_them_found(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear(lists: list[Any]) -> None:
        lists[0] = {("000000.tar", "000003")}

    monkeypatch.setattr("pipeline.session.quarantine.broadcast_object_list", hear)
    with Log(RunFolder(tmp_path), step=0, last_step=1, process=1, trace=False, quiet=True) as log:
        assert len(Quarantine(log, dataset.splits["train"], Accelerator(cpu=True))) == 1


def test_what_another_split_cannot_use_does_not_count(dataset: Dataset, tmp_path: Path) -> None:
    line = {"split": "test", "shard": "000000.tar", "key": "000005", "offset": 1536, "reason": "torn"}
    RunFolder(tmp_path).quarantine.write_text(json.dumps(line) + "\n")
    quarantine, log = a_quarantine(dataset, tmp_path)
    with log:
        assert len(quarantine) == 0


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The data set with three training images that cannot be used, far from each other."""
    folder = tmp_path / "damaged"
    shutil.copytree(dataset.folder, folder)
    index = dataset.splits["train"]
    for sample in (3, 33, 63):
        tar = folder / "train" / index.shards[index.shard_of(sample)].name
        with tar.open("r+b") as file:
            file.seek(int(index.rows["offset"][sample]) + 100)
            file.write(b"damaged")
    return read_dataset(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "goes_on"), [(3 / 70, True), (2.99 / 70, False), (0.0, False)])
def test_a_run_stops_above_the_share_of_unusable_samples_and_not_at_it(
    damaged: Dataset, tmp_path: Path, share: float, goes_on: bool
) -> None:
    recipe = replace(HERE, data=replace(HERE.data, epoch="images", max_bad=share), epochs=1)
    if goes_on:
        assert train_here(damaged, tmp_path / "run", recipe) == 0
    else:
        with pytest.raises(TrainingError, match=r"of 70 training samples cannot be used, more than --data.max-bad"):
            train_here(damaged, tmp_path / "run", recipe)
    keys = [line["key"] for line in named(tmp_path / "run")]
    assert len(keys) == len(set(keys))
    assert (sorted(keys) == ["000003", "000033", "000063"]) == (share > 0)


def wait_until(reached: Callable[[], object], seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_begun(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists() and bool(metrics(folder, "train"))


@pytest.mark.dist
def test_a_second_request_ends_a_process_that_waits_for_another_for_good(dataset: Dataset, tmp_path: Path) -> None:
    options = ("--data", dataset.folder, "--output", tmp_path / "run", "--data.workers", 0)
    launcher = start(PROGRAMS / "killed.py", *options, processes=2, env={"KILL": "halt 2 of process 1"})
    try:
        wait_until(lambda: has_begun(tmp_path / "run"))
        waiting, halted = sorted(psutil.Process(launcher.pid).children(), key=lambda process: process.pid)
        wait_until(lambda: halted.status() == psutil.STATUS_STOPPED)
        time.sleep(0.5)
        waiting.send_signal(signal.SIGTERM)
        time.sleep(FORWARDED / 10)
        waiting.send_signal(signal.SIGTERM)  # the same, passed on by a launcher
        time.sleep(FORWARDED)
        assert waiting.is_running()
        waiting.send_signal(signal.SIGTERM)
        gone, _ = psutil.wait_procs([waiting], timeout=TIMEOUT)
        assert gone
        halted.kill()
    finally:
        for process in psutil.Process(launcher.pid).children():
            process.kill()
        said = launcher.communicate()[1]
    assert "SIGTERM again: ended at once" in said


@pytest.mark.dist
def test_a_terminal_that_hangs_up_stops_the_run_with_a_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, PROGRAMS / "killed.py", "--data", dataset.folder, "--output", tmp_path / "run"],
        env={**ENVIRONMENT, "KILL": "slowly"},
        preexec_fn=lambda: os.login_tty(end),
    )
    os.close(end)
    try:
        drain = Thread(target=read_all, args=(terminal,), daemon=True)
        drain.start()
        wait_until(lambda: has_begun(tmp_path / "run"))
        psutil.Process(process.pid).send_signal(signal.SIGHUP)
        os.close(terminal)
        assert process.wait(TIMEOUT) == 75
    finally:
        process.kill()
        process.wait()
    assert metrics(tmp_path / "run", "event")[0]["event"] == "stopped on request"


def read_all(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 4096):
            pass


@pytest.mark.dist
def test_a_reader_of_the_output_that_ends_before_the_run_does_not_end_it(dataset: Dataset, tmp_path: Path) -> None:
    options = ("--data", dataset.folder, "--output", tmp_path / "run")
    process = start(PROGRAMS / "killed.py", *options, env={"KILL": "slowly"})
    try:
        wait_until(lambda: has_begun(tmp_path / "run"))
        process.stdout.close()  # Ctrl-C ends `tee` first
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 75
        said = process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
    assert "The standard output takes no more (Broken pipe)" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("grouped", [True, False])
def test_a_failed_process_of_several_may_say_why_before_its_launcher_ends_it(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: grouped)
    usual = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest().listening():
        raise RuntimeError("Connection closed by peer")
    assert (signal.getsignal(signal.SIGTERM) == usual) != grouped


def test_a_hang_up_that_is_ignored_stays_ignored_but_under_a_launcher_which_would_kill_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        usual = signal.getsignal(signal.SIGTERM)
        stop = StopRequest()
        with stop.listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (usual, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) == usual
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: stop.asked)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_asks(number: signal.Signals) -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.asked)


def test_a_request_is_answered_at_once_by_the_process_that_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def has_answered() -> bool:
        said.append(capfd.readouterr().err)
        return "\n" in "".join(said)

    silent = StopRequest()
    with silent.listening():
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: silent.asked)
    assert capfd.readouterr().err == ""
    stop = StopRequest(speaks=True)
    stop.answer = "finishing step 7 or 8, then saving and stopping"
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(has_answered)
    assert "".join(said) == (
        "Ctrl-C: finishing step 7 or 8, then saving and stopping. Ctrl-C again, after 2 s, ends at once.\n"
    )


def test_the_answer_names_the_steps_at_work(dataset: Dataset, tmp_path: Path) -> None:
    answers: list[str] = []

    class Noting(Events):
        def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
            answers.append(self._stop.answer)
            return super().after_step(step, losses, agreed, norm)

    train_here(dataset, tmp_path, HERE, Parts(events=Noting), max_steps=2)
    assert answers == [
        "finishing step 1 or 2, then saving and stopping",
        "finishing step 2, then saving and stopping",
    ]
