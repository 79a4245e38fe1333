"""Partial-k, linear probe and full fine-tuning of a ViT-Ti on CIFAR-10, one epoch.

A tutorial's set-up, which reports 95.96 % for all 5,526,346 parameters, 74.93 % for Partial-1 (446,794) and 61.82 % for
the head (1,930), and gives no rates, batch or augmentation: those here are ours.  Not run here: the weights cannot be
fetched on the machines we test on.
Run:   accelerate launch recipes/partial_k_cifar10.py --data DIR --output OUT
       another of full, linear, partial-2, partial-1/2, ...: --finetune.strategy partial-1/2
"""

from pipeline.config import Augment, Data, Ema, Eval, Finetune, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise, ours: the tutorial gives none.
RECIPE = Recipe(
    name="partial_k_cifar10",
    model=Model(
        name="vit_tiny_patch16_224",  # ImageNet-21k, then ImageNet-1k: timm's augreg_in21k_ft_in1k
        pretrained=True,  # the tutorial
        mean=(0.5, 0.5, 0.5),  # what these weights were trained with
        std=(0.5, 0.5, 0.5),  # likewise
    ),
    data=Data(classes=10, images=50_000),  # CIFAR-10
    augment=Augment(crop="resized", scale=(0.5, 1.0)),
    finetune=Finetune(strategy="partial-1"),  # the tutorial, which has full and linear too
    optim=Optim(lr=1e-3, lr_batch=0, weight_decay=0.0, warmup_epochs=0.1),
    ema=Ema(decay=0.0),
    eval=Eval(crop_ratio=1.0),
    batch=128,
    virtual_ranks=2,
    epochs=1,  # the tutorial
)

if __name__ == "__main__":
    main(RECIPE)
