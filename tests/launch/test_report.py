"""`vitrail report`: one page that holds all it shows, escapes all that comes from a run, and asks nobody."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.chart import DRAWN, Series, chart, thinned
from launch.report import PARTS, Part, limit, public
from pipeline.folder import RunFolder
from shards.dataset import Dataset
from shards.synthetic import make_dataset
from tests.running import train_here, vitrail
from tests.tiny import HERE

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on classes with hostile names, one sample of which cannot be used."""
    folder = tmp_path_factory.mktemp("report")
    dataset = make_dataset(folder / "data", classes=4, size=24, samples={"train": 70, "test": 21})
    head = folder / "data" / "dataset.json"
    head.write_text(head.read_text().replace('"1"', json.dumps(HOSTILE)).replace('"2"', '"\\"><img src=x onerror=y>"'))
    index = dataset.splits["train"]
    with (index.folder / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.rows["offset"][0]) + 50)
        file.write(b"damaged")
    recipe = replace(HERE, name=HOSTILE, data=replace(HERE.data, max_bad=0.1), eval=replace(HERE.eval, every_epochs=1))
    assert train_here(str(folder / "data"), folder / "run", recipe, max_steps=7) == 0
    assert train_here(str(folder / "data"), folder / "run", recipe, max_steps=10) == 0
    return folder / "run"


class Tags(HTMLParser):
    """The tags of a page, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.ids |= {str(value) for name, value in attrs if name == "id"}


def report(*arguments: object) -> str:
    output = Path(str(arguments[-1]))
    vitrail("report", *arguments[:-1], "--output", output)
    return output.read_text()


def test_a_page_has_all_its_parts(run: Path, tmp_path: Path) -> None:
    text = report(run, tmp_path / "page.html")
    parts = {"summary", "curves", "recipe", "data", "throughput", "hosting", "confusion", "mistakes", "attention"}
    assert parts | {"reproduce"} <= Tags(text).ids
    for words in ("top-1", "model.width", "70", "samples could not be used", "forward", "7 – 10", "accelerate launch"):
        assert words in text
    assert text.count("<polyline") >= 10
    assert "No recipe of Vitrail" in text


def test_what_comes_from_a_run_is_text_and_the_page_asks_nobody(run: Path, tmp_path: Path) -> None:
    text = report(run, tmp_path / "page.html")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    tags = Tags(text).found
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_several_runs_stand_side_by_side_with_what_they_differ_in(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    assert train_here(dataset, tmp_path / "other", replace(HERE, seed=5), max_steps=2) == 0
    text = report(run, tmp_path / "other", tmp_path / "page.html")
    assert re.search(r"<code>seed</code></td><td>0</td><td>5</td>", text)
    assert text.count('class="card"') >= 16


def test_a_recipe_of_ours_is_compared_with_its_file(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    path.write_text(path.read_text().replace(json.dumps(HOSTILE), '"deit_tiny"'))
    assert "recipes/deit_tiny.py" in report(tmp_path / "run", tmp_path / "page.html")


def test_a_run_that_only_began_has_a_page_and_damage_is_said(run: Path, tmp_path: Path) -> None:
    begun = RunFolder(tmp_path / "begun")
    begun.path.mkdir()
    shutil.copy(run / "recipe.json", begun.recipe)
    begun.metrics.write_text("damaged\n" + '{"kind": "train", "step": 1, "epoch": 0.1, "loss": NaN}\n')
    text = report(begun.path, tmp_path / "page.html")
    assert "metrics.jsonl: 1 lines cannot be read" in text
    assert "The run was not evaluated yet." in text


def test_a_picture_that_is_none_is_left_out(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    RunFolder(tmp_path / "run").finding("mistake", 0).write_text(HOSTILE)
    before, after = (report(folder, tmp_path / "page.html").count("<img") for folder in (run, tmp_path / "run"))
    assert after == before - 1


def test_all_that_is_wrong_with_a_request_is_said_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "recipe.json").write_text("{")
    said = vitrail(
        "report", run, tmp_path / "none", tmp_path / "damaged", "--output", tmp_path / "page.pdf", code=2
    ).stderr
    assert f"{tmp_path}/none: no run here" in said
    assert "recipe.json: torn or altered" in said
    assert "name a .html" in said
    assert "a folder; name a file in it" in vitrail("report", run, "--output", tmp_path, code=2).stderr
    assert not (tmp_path / "page.pdf").exists()


def test_what_limited_a_run_is_its_loader_where_the_model_waited() -> None:
    assert limit([Part(PARTS["wait"], 0.4), Part("forward", 0.6)]).startswith("The loader: 40%")
    assert limit([Part(PARTS["wait"], 0.01), Part("backward", 0.9)]).endswith("the largest part of a step is backward.")
    assert limit([]) == ""


def test_a_url_says_no_more_than_a_place() -> None:
    said = "--data s3://me:secret@host/data?X-Amz-Signature=abc --seed 1"
    assert public(said) == "--data s3://host/data --seed 1"


def test_a_chart_leaves_out_what_is_not_finite_and_thins_what_is_long() -> None:
    assert chart("loss", [Series("a", 0, [(0.0, float("nan"))])]) is None
    drawn = chart("loss", [Series("a", 0, [(0.0, 1.0), (1.0, 2.0), (2.0, float("inf"))])])
    assert drawn is not None
    assert len(drawn.lines[0].marks) == 2
    long = [(float(number), 0.0) for number in range(3 * DRAWN + 1)]
    assert len(thinned(long)) <= DRAWN + 2
    assert thinned(long)[-1] == long[-1]
