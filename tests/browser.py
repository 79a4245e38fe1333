"""A headless Chromium for the tests and for the pictures in docs/: what a person sees of a page."""

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 120  # seconds, on a machine that does much else
PHONE, DESKTOP = 390, 1280  # CSS pixels


def programs() -> tuple[str, str]:
    """Return Debian's Chromium and its driver; skips the test where they are not installed."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(found):
        if os.environ.get("VITRAIL_DEMAND"):
            pytest.fail("no chromium or chromedriver: apt-get install chromium chromium-driver")
        pytest.skip("needs chromium and chromium-driver")
    return str(found[0]), str(found[1])


@contextmanager
def browsing() -> Iterator[Chrome]:
    """Open a browser that asks nobody for anything but the pages it is given."""
    chromium, driver = programs()
    options = ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                       "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                       f"user-data-dir={profile}"):  # fmt: skip
            options.add_argument(f"--{option}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = Chrome(options=options, service=ChromeService(driver))
        try:
            browser.set_page_load_timeout(PATIENCE)
            browser.set_script_timeout(PATIENCE)
            yield browser
        finally:
            browser.quit()


def look(browser: Chrome, width: int, *, dark: bool = False) -> None:
    """Look at pages as a screen of some width does, in CSS pixels, in light or in dark."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def until(browser: Chrome, condition: Callable[[Chrome], object]) -> None:
    """Wait until a condition holds."""
    WebDriverWait(browser, PATIENCE, poll_frequency=0.2).until(condition)


def take_picture(browser: Chrome, path: Path, *, whole: bool = True) -> None:
    """Write a PNG of the page, the whole of it or what the screen shows."""
    settings = {"format": "png", "captureBeyondViewport": whole}
    if whole:
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        settings["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", settings)["data"]))
