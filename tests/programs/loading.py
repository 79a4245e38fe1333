"""A loader of 4 workers whose batches nobody takes: prints the workers' process ids when all have work, and waits."""

import time

import numpy as np
import psutil
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.data.loader import load

WORKERS = 4
NUMBERS = 1_000_000  # of a batch: more than a pipe holds, so that a worker waits for somebody to read


class Large(Dataset[NDArray[np.int64]]):
    def __getitem__(self, number: int) -> NDArray[np.int64]:
        return np.full(NUMBERS, number)


if __name__ == "__main__":
    batches = iter(load(Large(), range(1000), workers=WORKERS, pin_memory=False))
    for number in range(WORKERS):  # one of each worker
        assert next(batches)[0] == number
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(600)
