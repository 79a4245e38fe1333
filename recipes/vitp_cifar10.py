"""CIFAR-10 at 32 px with the usual patchify stem: what vitc_cifar10 is compared with.

50 epochs: not run yet; docs/reproduction.md has a smaller one.
Run:   accelerate launch recipes/vitp_cifar10.py --data DIR --output OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_cifar10 import RECIPE as VITC_CIFAR10

RECIPE = replace(
    VITC_CIFAR10,
    name="vitp_cifar10",
    model=replace(VITC_CIFAR10.model, name="vitp_1gf", depth=6),  # ours: the stem to compare with, and a block more
)

if __name__ == "__main__":
    main(RECIPE)
