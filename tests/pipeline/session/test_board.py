"""What a run shows in TensorBoard: under its name, once a step, and without changing the run."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import checkpoint
from pipeline.config import Finetune
from pipeline.folder import RunFolder
from pipeline.session.drawing import captioned, heat_map
from shards.dataset import Dataset
from tests.running import summary, train_here
from tests.tiny import HERE

WATCHED = replace(
    HERE,
    finetune=Finetune(rates="geometric", decay=0.5),
    eval=replace(HERE.eval, every_epochs=1),
    log=replace(HERE.log, trackers="tensorboard,kept", histograms=True, profile=2),
)
UNWATCHED = replace(WATCHED, log=replace(HERE.log, trackers=""))
LAST = 10
told: list[tuple[str, Any]] = []


class Kept(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, run_name: str) -> None:
        super().__init__()
        told.append(("name", run_name))

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        told.append(("recipe", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        told.append(("numbers", (step, values)))

    def finish(self) -> None:
        told.append(("end", None))


class Watched(NamedTuple):
    """A run that was stopped, lost its newest checkpoint, and went on; and one that nobody watched."""

    folder: RunFolder
    unwatched: Path


@pytest.fixture(scope="module")
def watched(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("board")
    register_tracker_class(Kept)
    told.clear()
    try:
        train_here(dataset, folder / "photos", WATCHED, max_steps=LAST)
        shutil.rmtree(checkpoint.checkpoints(folder / "photos" / "checkpoints")[0])
        train_here(dataset, folder / "photos", WATCHED, max_steps=LAST)
        train_here(dataset, folder / "plain", UNWATCHED, max_steps=LAST)
        yield Watched(RunFolder(folder / "photos"), folder / "plain")
    finally:
        del LOGGER_TYPE_TO_CLASS["kept"]


def events(folder: Path) -> EventAccumulator:
    """Return all that lies in a folder of event files."""
    read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0, "histograms": 0})
    return read.Reload()


def test_watching_a_run_changes_no_weight_of_it(watched: Watched) -> None:
    assert summary(watched.folder.path)["weights_sha256"] == summary(watched.unwatched)["weights_sha256"]
    assert not (watched.unwatched / "tensorboard").exists()
    assert not (watched.unwatched / "profile").exists()


def test_the_run_has_the_name_of_its_folder_and_each_weights_a_line_of_the_same_chart(watched: Watched) -> None:
    assert watched.folder.board == watched.folder.tensorboard / "photos"
    for weights in ("raw", "ema"):
        scalars = events(watched.folder.board / weights)
        assert [point.step for point in scalars.Scalars("test/top1")] == [5, 10]


def test_nothing_stands_twice_at_a_step_after_a_resume(watched: Watched) -> None:
    session = watched.folder.board
    for folder in (session, session / "raw", session / "ema"):
        read = events(folder)
        kinds = {"scalars": read.Scalars, "images": read.Images, "histograms": read.Histograms, "tensors": read.Tensors}
        tags = {(kind, tag) for kind in kinds for tag in read.Tags()[kind]}
        assert tags
        for kind, tag in tags:
            if tag.startswith(("custom_scalars", "_hparams_")):  # which have no steps
                continue
            steps = Counter(point.step for point in kinds[kind](tag))
            assert max(steps.values()) == 1, (folder.name, kind, tag, steps)
    assert [point.step for point in events(session).Scalars("train/loss")] == list(range(1, LAST + 1))


def test_training_shows_rates_times_memory_unusable_samples_and_pictures(watched: Watched) -> None:
    read = events(watched.folder.board)
    scalars, images, tensors = (set(read.Tags()[kind]) for kind in ("scalars", "images", "tensors"))
    parts = ("wait", "input", "forward", "backward", "update", "other")
    wanted = {"grad_norm", "images_per_second", "data_wait", "unusable", "memory_gib", "lr",
              *(f"times/{part}" for part in parts)}  # fmt: skip
    assert {f"train/{name}" for name in wanted} <= scalars
    rates = {tag: read.Scalars(tag)[3].value for tag in scalars if tag.startswith("train/lr_by_group/")}
    assert len(rates) == 4  # stem, two blocks, head
    assert max(rates.values()) == pytest.approx(read.Scalars("train/lr")[3].value)
    assert {"train/augmented", "test/confusion", "test/most_confident_mistakes", "test/attention"} <= images
    assert {"recipe/text_summary", "train/profile/text_summary"} <= tensors
    assert "optim.lr = 0.001" in read.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert any(tag.startswith("weights/blocks/0") for tag in events(watched.folder.board / "raw").Tags()["histograms"])


def test_the_page_of_hyperparameters_has_the_run_and_its_final_metrics(watched: Watched) -> None:
    read = events(watched.folder.board)
    content = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"test/top1" in content
    assert b"ema" in content
    assert b"optim.lr" in read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert read.SummaryMetadata("_hparams_/session_end_info")


def test_the_parts_of_a_step_take_no_longer_than_the_step(watched: Watched) -> None:
    line = watched.folder.logged("train")[-1]
    assert 0 < sum(line["times"].values()) < HERE.batch / line["images_per_second"] * 2


def test_the_profiler_leaves_a_trace_and_a_table(watched: Watched) -> None:
    names = sorted(path.name for path in watched.folder.profile.iterdir())
    assert names == ["steps-00000003.json.gz", "steps-00000003.txt"]
    assert "CPU" in (watched.folder.profile / names[1]).read_text()


def test_a_tracker_of_accelerates_hears_the_recipe_and_each_step_once(watched: Watched) -> None:
    heard = [values for kind, values in told if kind == "numbers"]
    assert told[0] == ("name", "vitrail-photos")
    assert dict(told)["recipe"]["optim.lr"] == 1e-3
    assert [step for step, values in heard if "train/loss" in values] == list(range(1, LAST + 1))
    assert [step for step, values in heard if "test/top1/ema" in values] == [5, 10]
    assert Counter(kind for kind, _ in told)["end"] == 2


def test_a_caption_stands_below_its_image_and_controls_nothing() -> None:
    images = np.full((3, 4, 4, 3), 128, np.uint8)
    sheet = captioned(images, ["cat 60%\ndog 40%", "\x1b[31m", "a name that is much too long for one line"], 2)
    assert sheet.shape[2] == 3
    assert (sheet[:132, :132] == 128).all()
    assert sheet[132:170, :132].min() == 0  # letters


def test_a_heat_map_is_dark_where_a_class_is_answered_and_is_left_out_for_too_many() -> None:
    drawn = heat_map([[0, 0, 3], [1, 0, 1], [1, 1, 1]], 2)
    assert drawn is not None
    assert drawn[0, 0].sum() < drawn[-1, 0].sum() == drawn[-1, -1].sum() < drawn[0, -1].sum() == 3 * 255
    assert heat_map([], 1001) is None
