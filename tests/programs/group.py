"""Several processes of a program, in the environment that a launcher gives them: `group.py PROCESSES SCRIPT ...`.

`accelerate launch` takes seconds to start, for torch; tests that are not about it start their processes by this.
"""

import os
import socket
import subprocess
import sys
import time


def main(processes: int, command: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU", "true"),
    }
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group = [
        subprocess.Popen([sys.executable, *command], env={**os.environ, **common, "RANK": str(n), "LOCAL_RANK": str(n)})
        for n in range(processes)
    ]
    while any(process.poll() is None for process in group) and not any(process.poll() for process in group):
        time.sleep(0.05)
    failed = any(process.poll() for process in group)
    deadline = time.monotonic() + 30  # as torch's launcher gives the others
    for process in group:
        if failed and process.poll() is None:
            process.terminate()
        try:
            process.wait(max(0.1, deadline - time.monotonic()) if failed else None)
        except subprocess.TimeoutExpired:
            process.kill()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
