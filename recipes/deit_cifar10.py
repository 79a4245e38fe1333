"""CIFAR-10 at 32 px: a small ViT with the DeiT recipe and the usual padded crop.

Expect 0.390 top-1 after --epochs 5, at 154 images/s on 2 cores (n=1; LOG 2026-11-22).  100 epochs: not run yet.
Run:   vitrail shards build CIFAR10.zip DIR
       accelerate launch recipes/deit_cifar10.py --data DIR --output OUT
"""

from pipeline.config import Augment, Data, Ema, Eval, Mix, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise, ours: as deit_small, for 32 px and two cores.
RECIPE = Recipe(
    name="deit_cifar10",
    model=Model(name="deit_tiny_patch16_224", img_size=32, patch_size=4, width=128, depth=6, heads=4, drop_path=0.1),
    data=Data(classes=10, images=50_000, repeats=3),
    augment=Augment(crop="padded", pad=4, rand_ops=2, rand_magnitude=9, rand_std=0.5, erase=0.25),
    mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, smoothing=0.1),
    optim=Optim(lr=1e-3, weight_decay=0.05, warmup_epochs=1),
    ema=Ema(decay=0.9998),
    eval=Eval(batch=200, crop_ratio=1.0),
    batch=256,
    virtual_ranks=4,
    epochs=100,
)

if __name__ == "__main__":
    main(RECIPE)
