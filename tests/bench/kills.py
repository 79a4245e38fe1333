"""Kill a run at random moments, resume it, and compare its weights with those of an unbroken one.

python tests/bench/kills.py --data DIR --kills 25 --processes 2      (DIR: vitrail shards build digits DIR)
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.folder import RunFolder, Summary
from shards.files import read_json

LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
          "launch/configs/cpu.yaml", "--main_process_port", "0", "--num_processes"]  # fmt: skip
RECIPE = ["recipes/deit_digits.py", "--max-steps", "40", "--log.every-steps", "1", "--checkpoint.every-steps", "5"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        hashes = []
        for number in range(options.kills + 1):
            folder = Path(scratch) / str(number)
            command = [*LAUNCH, str(options.processes), *RECIPE, "--data", options.data, "--output", str(folder)]
            if number:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                step = rng.randrange(1, 40)
                while len(RunFolder(folder).logged("train")) < step:
                    time.sleep(0.01)
                time.sleep(rng.random() * 0.2)  # anywhere in a step, or in a save
                family = psutil.Process(process.pid)
                for victim in (*family.children(recursive=True), family):  # ranks, loader workers, the launcher
                    victim.kill()
                process.wait()
            before = len(RunFolder(folder).logged("train"))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            hashes.append(read_json(RunFolder(folder).summary, Summary)["weights_sha256"])
            print(f"killed after step {before:2d}" if number else "unbroken", hashes[-1], flush=True)
    print(f"{sum(h == hashes[0] for h in hashes[1:])} of {options.kills} equal the unbroken run")


if __name__ == "__main__":
    main()
