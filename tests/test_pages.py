"""What a person sees in a browser: the report on a phone and on a desktop, in light and in dark, and TensorBoard.

One browser is started for all of it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard import program

pytest.importorskip("selenium")

from selenium.webdriver import Chrome

from tests.browser import DESKTOP, PHONE, browsing, look, until
from tests.running import train_here, vitrail
from tests.tiny import HERE

pytestmark = [
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of the server's sockets
]
HOSTILE = "<script>document.title = 'executed'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one run."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = replace(HERE, name=HOSTILE, eval=replace(HERE.eval, every_epochs=1))
    assert train_here(dataset, folder / "photos", recipe, max_steps=10) == 0
    return folder


@pytest.fixture(scope="module")
def page(browser: Chrome, runs: Path) -> None:
    """The report of the run, opened."""
    vitrail("report", runs / "photos", "--output", runs / "page.html")
    browser.get((runs / "page.html").as_uri())
    until(browser, lambda opened: opened.execute_script("return document.readyState") == "complete")


def value(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_fits_the_screen_with_every_part_and_picture(browser: Chrome, page: None, width: int) -> None:
    look(browser, width)
    assert value(browser, "document.documentElement.scrollWidth <= innerWidth")
    heights = value(browser, "[...document.querySelectorAll('section')].map(part => part.offsetHeight)")
    assert len(heights) == 10
    assert min(heights) > 40
    lengths = value(browser, "[...document.querySelectorAll('polyline')].map(line => line.getTotalLength())")
    assert len(lengths) >= 10
    assert max(lengths) > 100
    drawn = value(browser, "[...document.images].map(image => image.naturalWidth)")
    assert len(drawn) >= 12
    assert min(drawn) == 16
    columns = value(browser, "new Set([...document.querySelectorAll('.chart')].map(c => c.offsetLeft)).size")
    assert columns == (1 if width == PHONE else 3)


def test_the_report_is_dark_where_the_screen_is(browser: Chrome, page: None) -> None:
    colours = []
    for dark in (False, True):
        look(browser, DESKTOP, dark=dark)
        colours.append(value(browser, "getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 22, 29)"]


def test_the_report_executes_nothing_and_asks_nobody(browser: Chrome, page: None) -> None:
    assert HOSTILE in value(browser, "document.body.textContent")
    assert "executed" not in browser.title
    asked = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "chrome"}  # its own empty page


def test_tensorboard_shows_the_curves_and_pictures_of_a_named_run(browser: Chrome, runs: Path) -> None:
    board = program.TensorBoard()
    board.configure(
        argv=[None, "--logdir", str(runs), "--port", "0", "--load_fast", "false", "--reload_multifile", "true"]
    )
    address = board.launch()
    look(browser, DESKTOP)

    def shows(script: str) -> None:
        until(browser, lambda opened: opened.execute_script(f"return {script}"))

    # cards are drawn where they are on the screen: those of a tag at a time
    browser.get(f"{address}?tagFilter=test/top1#timeseries")
    shows("document.body.innerText.includes('photos/tensorboard/photos/ema')")
    shows("document.querySelector('scalar-card line-chart') !== null")
    browser.get(f"{address}?tagFilter=augmented#timeseries")
    shows("[...document.querySelectorAll('image-card img')].some(image => image.naturalWidth > 400)")
