"""What `vitrail shards build` costs on one core beside `tar cf` of the same folder, in turns: medians.

    python tests/bench/bench_build.py [FOLDER [WORK]]

FOLDER holds class folders, or splits of them; without one, small JPEGs are made. WORK is where both write, for instance
on a tmpfs.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

ROUNDS: Final = 5
MADE: Final = 5000  # images, where no folder is given
BUILD: Final = (sys.executable, "-m", "launch.cli", "shards", "build", "--processes", "1")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=next(iter(sys.argv[2:]), None)) as scratch:
        work = Path(scratch)
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else made(work / "made", MADE)
        images = sum(len(files) for _, _, files in os.walk(folder))
        arms = {
            "tar cf": ("tar", "cf", f"{work}/all.tar", "-C", str(folder), "."),
            "vitrail shards build": (*BUILD, str(folder), f"{work}/shards"),
            "of two images": (*BUILD, str(made(work / "two", 2)), f"{work}/shards"),
        }
        taken: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
        for _ in range(ROUNDS + 1):
            for arm, command in arms.items():
                shutil.rmtree(work / "shards", ignore_errors=True)
                taken[arm].append(seconds_of(command))
    medians = {
        arm: [statistics.median(column) for column in zip(*of_arm[1:], strict=True)] for arm, of_arm in taken.items()
    }
    tar, ours, start = (medians[arm][1] for arm in arms)
    print(
        json.dumps(
            {
                "what": f"{images:,} files of {folder.name}, seconds and seconds of a core",
                **{arm: [round(value, 3) for value in values] for arm, values in medians.items()},
                "microseconds_an_image_beside_start_and_tar": round((ours - start - tar) / images * 1e6, 1),
                "n": ROUNDS,
                "load": round(os.getloadavg()[0], 1),
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


def made(folder: Path, count: int) -> Path:
    """Return a new folder of so many small JPEGs of two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("cat", "dog")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return how long it took, and how much of a core."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
