"""The small recipe, killed, halted or slowed down where the variable KILL says.

`step N`, `step N of process P`, `halt N of process P`, `save NNNNNNNN`, `slowly`.
"""

import os
import signal
import time
from pathlib import Path

from torch import Tensor

from pipeline.checkpoint import Writer
from pipeline.run import main
from pipeline.session.events import Events
from pipeline.session.session import Parts
from tests.tiny import TINY

KILL = os.environ.get("KILL", "")


class Killed(Events):
    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        if KILL == "slowly":
            time.sleep(0.2)
        place = f"{step} of process {self.run.job.hosting.process}"
        if KILL in (f"step {step}", f"step {place}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if f"halt {place}" == KILL:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().after_step(step, losses, agreed, norm)


class KilledInASave(Writer):
    def write_file(self, tensors: dict[str, Tensor], path: Path) -> None:
        super().write_file(tensors, path)
        if f"save {path.parent.name[-12:-4]}" == KILL:
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(TINY, parts=Parts(events=Killed, writer=KilledInASave))
