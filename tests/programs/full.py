"""The small recipe on a device that claims to be full: in the forward pass of number FULL of the last process."""

import os
from unittest.mock import patch

import torch
from torch import Tensor

from pipeline.model.student import Student
from pipeline.run import main
from tests.tiny import HERE


class Full:
    """A device that is full in one forward pass of a run, or in all of more images than it holds."""

    def __init__(self, full_pass: int = 0, holds: int = 1 << 30) -> None:
        self.full_pass, self.holds = full_pass, holds
        self.passes = 0

    def __enter__(self) -> "Full":
        forward = Student.forward

        def limited(student: Student, images: Tensor, keys: Tensor) -> Tensor:
            self.passes += 1
            if self.passes == self.full_pass or len(images) > self.holds:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)} GiB.\nGPU 0 has")
            return forward(student, images, keys)

        self._patch = patch.object(Student, "forward", limited)
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


if __name__ == "__main__":
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    with Full(full_pass=int(os.environ.get("FULL", "0")) if last else 0):
        main(HERE)
