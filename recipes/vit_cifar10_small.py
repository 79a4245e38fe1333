"""A small ViT on 5,000 images of CIFAR-10, without augmentation: 10 epochs from scratch.

The set-up of a well-known tutorial with vit_pytorch, which reports 38.7 % and does not say on which split.
Expect 38.7 +- 0.8 % on the test split, in 6 to 15 minutes on one busy core (n=3; docs/reproduction.md).
Run:   accelerate launch recipes/vit_cifar10_small.py --data DIR --output OUT
"""

from pipeline.config import Augment, Data, Ema, Eval, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise: the tutorial.
RECIPE = Recipe(
    name="vit_cifar10_small",
    model=Model(
        name="vit_pytorch_tiny",
        img_size=32,
        patch_size=8,
        width=128,
        depth=3,
        heads=2,
        mlp_ratio=2.0,
        mean=(0.0, 0.0, 0.0),  # pixels in [0, 1], as they are
        std=(1.0, 1.0, 1.0),  # likewise
    ),
    data=Data(classes=10, images=50_000, subset=5_000),  # of CIFAR-10; the tutorial draws its 5,000 without a seed
    augment=Augment(crop="whole", flip=0.0),
    # the tutorial: torch's Adam, and a rate that stays where it is
    optim=Optim(name="adam", lr=1e-3, lr_batch=0, weight_decay=0.0, warmup_epochs=0, min_lr=1e-3),
    ema=Ema(decay=0.0),  # the tutorial has none
    eval=Eval(
        batch=200,  # ours: no number depends on it
        crop_ratio=1.0,
    ),
    batch=32,  # the tutorial, whose last batch of an epoch has 8 images; here 156 are whole and the rest is left out
    virtual_ranks=1,  # ours
    epochs=10,
)

if __name__ == "__main__":
    main(RECIPE)
