"""The small recipe on two virtual ranks, with a pause after each step of as many seconds as PAUSE says."""

import os
import time
from dataclasses import replace

from torch import Tensor

from pipeline.run import main
from pipeline.session.events import Events
from pipeline.session.session import Parts
from tests.tiny import TINY

RECIPE = replace(TINY, virtual_ranks=2)


class Slow(Events):
    def after_step(self, step: int, losses: Tensor, agreed: Tensor, norm: Tensor) -> bool:
        time.sleep(float(os.environ["PAUSE"]))
        return super().after_step(step, losses, agreed, norm)


if __name__ == "__main__":
    main(RECIPE, parts=Parts(events=Slow))
