"""DeiT III-S/16 on ImageNet-21k, 240 epochs: deit3_small with a simple crop (2204.07118; README_revenge.md).

Expect 83.1 % top-1 on ImageNet-1k after deit3_small_in21k_in1k (README_revenge.md).  Not run here: no data, no GPU.
Run:   accelerate launch recipes/deit3_small_in21k.py --data DIR --output OUT
"""

from dataclasses import replace

from pipeline.config import Data, Mix
from pipeline.run import main
from recipes.deit3_small import RECIPE as DEIT3_SMALL

# Unless a field says otherwise: README_revenge.md, ViT-S on ImageNet-21k.
RECIPE = replace(
    DEIT3_SMALL,
    name="deit3_small_in21k",
    data=Data(
        classes=21_841,  # ImageNet-21k; the command says 1,000
        images=14_197_122,  # ImageNet-21k
        repeats=1,  # --no-repeated-aug
    ),
    augment=replace(DEIT3_SMALL.augment, crop="simple"),  # --src
    mix=Mix(cutmix_alpha=1.0, smoothing=0.1),  # no mixup; cross-entropy with soft targets: no --bce-loss
    optim=replace(DEIT3_SMALL.optim, lr=1e-3, weight_decay=0.02),
    virtual_ranks=16,  # 128 images on each of 16 GPUs
    epochs=240,
)

if __name__ == "__main__":
    main(RECIPE)
