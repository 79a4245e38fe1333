"""A CNN for the digits: the teacher of deit_digits_distilled, on the views of its student.

So batch norm sees each image three times; one copy of each was not measured.
Expect 0.986 top-1 (n=1; docs/reproduction.md).
Run:   make demo
"""

from dataclasses import replace

from pipeline.config import Ema, Mix, Model, Optim
from pipeline.run import main
from recipes.deit_digits import RECIPE as DEIT_DIGITS

# Unless a field says otherwise, ours: the usual training of a CIFAR ResNet, short.
RECIPE = replace(
    DEIT_DIGITS,
    name="teacher_digits",
    model=Model(name="resnet20_cifar", img_size=16),
    mix=Mix(),
    optim=Optim(name="sgd", lr=0.1, lr_batch=128, weight_decay=1e-4, warmup_epochs=1, min_lr=0.0),
    ema=Ema(decay=0.0),
    epochs=20,
)

if __name__ == "__main__":
    main(RECIPE)
