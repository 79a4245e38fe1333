"""`vitrail slurm`: `slurm/train.sbatch` filled in for a recipe and a cluster, and SLURM's own sbatch to check it."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tyro

from launch.recipe_files import recipe_file
from launch.verb import RecipeVerb, config_file, engine_named, resolved
from pipeline.fields import flag
from pipeline.hosting import Hosting
from pipeline.job import TRAINING
from pipeline.request import OWN_FLAGS
from shards.errors import BadRequest, Problem, harmless

ROOT: Final = Path(__file__).parents[1]
TEXTS: Final = ("time", "partition", "account", "qos", "constraint", "mem")  # options that are sbatch's own
CPUS_PER_GPU: Final = 8  # what a GPU has at least on most clusters, and `docs/speed.md` says that DeiT-S needs more of


@dataclass(frozen=True, kw_only=True)
class Slurm(RecipeVerb):
    """Print the job script of a recipe, checked by `sbatch --test-only`, or submit it.

    Takes the recipe's own fields too: --data, --output, --epochs, ...

    Example: vitrail slurm deit_small --nodes 2 --gpus-per-node 8 --data DIR --output OUT --submit
    """

    reads = OWN_FLAGS

    nodes: int = 1  # of the job
    gpus_per_node: int = 8  # 0: none
    processes_per_node: int = 0  # 0: as many as GPUs, one at least
    time: str = "24:00:00"  # time limit; shortly before it the run saves, and the job queues itself again
    partition: str = ""  # empty: the cluster's default, as for the next four
    account: str = ""  # that pays
    qos: str = ""  # quality of service
    constraint: str = ""  # features that the nodes must have
    mem: str = ""  # memory of a node, as sbatch takes it: 240G
    cpus_per_process: int = 0  # cores for a process and its loader workers; 0: 8 beside a GPU, else 1
    config: str = "ddp_multinode"  # of launch/configs
    submit: tyro.conf.FlagCreatePairsOff[bool] = False  # submit the script instead of printing it

    def __call__(self, arguments: list[str]) -> int:
        """Check the request as the job would, then print or submit the script."""
        processes = self.processes_per_node or max(1, self.gpus_per_node)
        engine, found = engine_named(self.config)
        found += self.problems()
        hosting = Hosting(processes=max(1, self.nodes * processes), engine=engine)  # of fewer nothing follows
        resolved(self.request(arguments), TRAINING, hosting, found)
        resources = Resources(
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            processes_per_node=processes,
            cpus_per_process=self.cpus_per_process or (CPUS_PER_GPU if self.gpus_per_node else 1),
            sbatch={name: getattr(self, name) for name in TEXTS},
            config=config_file(self.config),
        )
        script = job_script(recipe_file(self.recipe)[0].resolve(), arguments, resources)
        if self.submit:
            print(harmless(sbatch(script)))
        else:
            print(script, end="")
            print(harmless(sbatch(script, "--test-only")), file=sys.stderr)
        return 0

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the options that sbatch reads: it splits its lines as a shell does."""
        for name in TEXTS:
            if not re.fullmatch(r"[^\s'\"\\#]*", value := getattr(self, name)):
                yield Problem(
                    name, f"--{name} {value!r}: blanks, quotes, `\\` and `#` are no part of what sbatch takes."
                )
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("processes_per_node", 0), ("cpus_per_process", 0)):
            if (number := getattr(self, name)) < least:
                yield Problem(name, f"--{flag(name)} is {number}; it must be at least {least}.")


VERB: Final = Slurm


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of the cluster."""

    nodes: int
    gpus_per_node: int  # 0: none
    processes_per_node: int
    cpus_per_process: int
    sbatch: Mapping[str, str]  # further options by name, as sbatch takes them; empty: the cluster's default
    config: Path  # for `accelerate launch`


def job_script(recipe: Path, arguments: list[str], resources: Resources) -> str:
    """Return the text of a job script."""
    options = {
        "nodes": str(resources.nodes),
        "gpus-per-node": str(resources.gpus_per_node or ""),
        "cpus-per-task": str(
            resources.cpus_per_process * resources.processes_per_node
        ),  # a task starts those of a node
        **resources.sbatch,
    }
    head, body = (ROOT / "slurm" / "train.sbatch").read_text().split("set -uo pipefail\n")
    for name, value in options.items():
        head = re.sub(rf"^#SBATCH --{name}=.*\n", "", head, flags=re.MULTILINE)
        head += f"#SBATCH --{name}={value}\n" if value else ""
    filled = [
        f"export CONFIG={shlex.quote(str(resources.config))}",
        f"export PYTHON={shlex.quote(sys.executable)}",
        f"export PROCESSES_PER_NODE={resources.processes_per_node}",
        f"set -- {shlex.join([str(recipe), *arguments])}",
    ]
    return f"{head}set -uo pipefail\n" + "\n".join(filled) + f"\n{body}"


def sbatch(script: str, *options: str) -> str:
    """Hand a script to sbatch and return what it said.  Raises BadRequest with its words if it refuses."""
    program = shutil.which("sbatch")
    if program is None:
        raise BadRequest.of("submit", "sbatch is not on this machine; run this where jobs are submitted.")
    command = [program, *options]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BadRequest.of("submit", f"sbatch refuses the job: {done.stderr.strip()}")
    return (done.stdout + done.stderr).strip()
