"""CIFAR-10 at 32 px: deit_cifar10 distilled from a CNN, whose outputs are kept where you name a store.

100 epochs: not run yet; docs/reproduction.md has smaller students of this kind.
Run:   accelerate launch recipes/deit_cifar10_distilled.py --data DIR --output OUT --distill.weights FILE
       FILE is resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10, or weights of teacher_cifar10
"""

from dataclasses import replace

from pipeline.config import Distill
from pipeline.run import main
from recipes.deit_cifar10 import RECIPE as DEIT_CIFAR10

RECIPE = replace(
    DEIT_CIFAR10,
    name="deit_cifar10_distilled",
    model=replace(DEIT_CIFAR10.model, name="deit_tiny_distilled_patch16_224"),  # ours: with a distillation token
    distill=Distill(teacher="resnet56_cifar"),  # ours: the network of teacher_cifar10
)

if __name__ == "__main__":
    main(RECIPE)
