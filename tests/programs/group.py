"""Several processes of a program, in the environment that a launcher gives them: `group.py PROCESSES SCRIPT ...`.

`accelerate launch` takes seconds to start, for torch; tests that are not about it start their processes by this.
"""

import os
import socket
import sys
import time
from multiprocessing import get_context

from tests.forks import become


def begin(number: int, command: list[str]) -> None:
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number)})
    become(command)


def main(processes: int, command: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU", "true"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    fork = get_context("fork")
    group = [fork.Process(target=begin, args=(number, command)) for number in range(processes)]
    for process in group:
        process.start()
    while any(process.is_alive() for process in group) and not any(process.exitcode for process in group):
        time.sleep(0.05)
    if not any(process.exitcode for process in group):
        return 0
    deadline = time.monotonic() + 30  # as torch's launcher gives the others
    for process in group:
        process.terminate()
    for process in group:
        process.join(max(0.1, deadline - time.monotonic()))
        process.kill()
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
