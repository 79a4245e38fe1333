"""The GPU tests where there is no GPU: they are skipped with one reason, their code works, and their page is right."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.page import PEAKS, Check, peak_of, written
from tests.running import ENVIRONMENT, ROOT, TIMEOUT

MACHINE = {"card": "NVIDIA H100", "commit": "0123456789ab", "date": "2026-11-29 07:00 UTC"}


def gpu_tests(page: Path, *options: str, on: str = "") -> str:
    """Run the GPU tests as on a machine without a GPU, and return what pytest said."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "VITRAIL_GPU_TESTS_ON"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "GPU_PAGE": str(page)} | ({"VITRAIL_GPU_TESTS_ON": on} if on else {})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "tests/gpu", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.dist
def test_without_a_gpu_they_are_skipped_for_one_reason_and_no_page_is_written(tmp_path: Path) -> None:
    said = gpu_tests(tmp_path / "gpu.md", "-m", "gpu")
    assert "no CUDA device: `make gpu` on a machine with one (docs/gpu.md)" in said
    assert "passed" not in said
    assert not (tmp_path / "gpu.md").exists()


@pytest.mark.dist
def test_their_code_works_where_the_cpu_stands_for_the_card(tmp_path: Path) -> None:
    said = gpu_tests(tmp_path / "gpu.md", "-k", "views or waits or memory", on="cpu")
    assert "3 passed, 1 skipped" in said
    page = (tmp_path / "gpu.md").read_text()
    assert "| views are those of the cpu | PASS | largest difference of a normalised pixel: 0.0e+00 |" in page
    assert "steps without a wait: 8" in page
    assert "| memory is what the plan says | not run | why: only a CUDA device can show it |" in page


def test_the_page_has_the_machine_every_check_and_what_failed() -> None:
    checks = [
        Check("views", "passed", [("difference", "1e-5")]),
        Check("memory", "failed", [("planned", "1 GB"), ("held", "2 | 3 GB")]),
        Check("two cards", "skipped", [("why", "there is one card")]),
    ]
    page = written(checks, MACHINE)
    assert page.splitlines()[:3] == ["# Vitrail on NVIDIA H100", "", "`make gpu`: 1 of 3 checks FAILED."]
    assert "| commit | 0123456789ab |" in page
    assert "| views | PASS | difference: 1e-5 |" in page
    assert "| memory | FAIL | planned: 1 GB; held: 2 \\| 3 GB |" in page
    assert "| two cards | not run | why: there is one card |" in page
    assert "3 checks, none failed" in written([checks[0], checks[0], checks[2]], MACHINE)


def test_the_peak_of_a_card_is_found_by_its_name() -> None:
    assert peak_of("NVIDIA A100-SXM4-80GB") == PEAKS["a100"]
    assert peak_of("Tesla V100-SXM2-32GB") == PEAKS["v100"]
    assert peak_of("NVIDIA GeForce RTX 4090") is None
