"""CIFAR-10 at 32 px with a convolutional stem: vitp_cifar10 with two 3x3 convolutions and a block less.

The set-up of "Early Convolutions" (2106.14881) at a size for two cores.  50 epochs: not run yet; with patch 8, 10,000
images and four epochs 35.4 +- 1.3 % against 32.8 +- 0.7 % with patches (n=3; docs/reproduction.md).
Run:   accelerate launch recipes/vitc_cifar10.py --data DIR --output OUT
"""

from pipeline.config import Augment, Data, Ema, Eval, Mix, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise, ours: as vitc_4gf, for 32 px and two cores.
RECIPE = Recipe(
    name="vitc_cifar10",
    # ours: two convolutions of stride 2, with 64 and 128 channels
    model=Model(name="vitc_1gf", img_size=32, patch_size=4, width=128, depth=5, heads=4),
    data=Data(classes=10, images=50_000),
    augment=Augment(crop="padded", pad=4, policy="auto_v0"),
    mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1),
    optim=Optim(lr=1e-3, lr_batch=0, weight_decay=0.24, warmup_epochs=1, warmup_lr=0.0, min_lr=0.0),
    ema=Ema(decay=0.9998),
    eval=Eval(batch=200, crop_ratio=1.0),
    batch=256,
    virtual_ranks=4,
    epochs=50,
)

if __name__ == "__main__":
    main(RECIPE)
