"""A small CNN with the small recipe's data, by plain SGD.

Adam would blow the rounding of gradients that are next to nothing up to whole steps.
"""

from dataclasses import replace

from pipeline.config import Model, Optim
from pipeline.run import main
from tests.tiny import TINY

RECIPE = replace(
    TINY,
    model=Model(name="resnet20_cifar", img_size=16),
    optim=Optim(name="sgd", lr=0.01, lr_batch=0, warmup_epochs=1),
)

if __name__ == "__main__":
    main(RECIPE)
