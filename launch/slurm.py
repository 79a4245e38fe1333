"""Job scripts: `slurm/train.sbatch` filled in for a recipe and a cluster, and SLURM's own sbatch to check them."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import BadRequest

ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of the cluster."""

    nodes: int
    gpus_per_node: int  # 0: none
    processes_per_node: int
    time: str  # as sbatch takes it: minutes, hours:minutes:seconds, days-hours, ...
    partition: str  # empty: the cluster's default
    config: str  # of launch/configs


def job_script(recipe: Path, arguments: list[str], resources: Resources) -> str:
    """Return the text of a job script."""
    options = {
        "nodes": str(resources.nodes),
        "time": resources.time,
        "partition": resources.partition,
        "gpus-per-node": str(resources.gpus_per_node or ""),
    }
    head, body = (ROOT / "slurm" / "train.sbatch").read_text().split("set -uo pipefail\n")
    for name, value in options.items():
        head = re.sub(rf"^#SBATCH --{name}=.*\n", "", head, flags=re.MULTILINE)
        head += f"#SBATCH --{name}={value}\n" if value else ""
    filled = [
        f"export CONFIG={shlex.quote(str(ROOT / 'launch' / 'configs' / f'{resources.config}.yaml'))}",
        f"export PROCESSES_PER_NODE={resources.processes_per_node}",
        f"set -- {shlex.join([str(recipe), *arguments])}",
    ]
    return f"{head}set -uo pipefail\n" + "\n".join(filled) + f"\n{body}"


def sbatch(script: str, *options: str) -> str:
    """Hand a script to sbatch and return what it said.  Raises BadRequest with its words if it refuses."""
    program = shutil.which("sbatch")
    if program is None:
        raise BadRequest(["sbatch is not on this machine; run this where jobs are submitted."])
    command = [program, *options]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BadRequest([f"sbatch refuses the job: {done.stderr.strip()}"])
    return (done.stdout + done.stderr).strip()
