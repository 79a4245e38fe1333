"""Programs in processes forked from one that has the libraries imported: a new interpreter takes ten seconds for that.

They run as `python PROGRAM ...` would, with an environment, pipes, signals and an exit code of their own.  Nothing of
Vitrail is imported before: that they do themselves.
"""

import os
import runpy
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

FORKS: Final = get_context("forkserver")
FORKS.set_forkserver_preload([
    "accelerate", "boto3", "matplotlib.pyplot", "tensorboard", "timm", "torch._dynamo", "torch.distributed.tensor",
    "torch.utils.tensorboard", "torchvision", "tyro", "webdataset",
])  # fmt: skip


class Program:
    """A program that runs, with those methods of `subprocess.Popen` that tests call."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        """Start a command: a script or `-m MODULE`, and its arguments."""
        self.args = command
        ends = [FORKS.Pipe(duplex=False) for _ in range(2)]
        self._process = FORKS.Process(target=_begin, args=(command, env, *(child for _, child in ends)))
        self._process.start()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno())) for pipe, _ in ends)
        for end in (end for pair in ends for end in pair):
            end.close()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, once there is one."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it says on both streams, once it has ended."""
        readers = ThreadPoolExecutor(2)
        said = readers.map(lambda pipe: pipe.read(), (self.stdout, self.stderr), timeout=timeout)
        readers.shutdown(wait=False)
        out, err = said
        self.stdout.close()
        self.stderr.close()
        self._process.join()
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _begin(command: list[str], env: dict[str, str], out: Connection, err: Connection) -> None:
    for number, pipe in enumerate((out, err), start=1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    set_start_method(None, force=True)  # the default, where this process has that by which it was started
    os.environ.clear()
    os.environ.update(env)
    become(command)


def become(command: list[str]) -> None:
    """Run a command in this process as an interpreter that begins with it would, and end."""
    first, *arguments = command
    if first == "-m":
        module, *sys.argv = arguments
        sys.argv.insert(0, module)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
