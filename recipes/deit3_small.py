"""DeiT III-S/16, 800 epochs, ImageNet-1k (2204.07118; deit/README_revenge.md).

Expect 81.4 % top-1 at 224 px (README_revenge.md).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_small.py --data DIR --output OUT
"""

from pipeline.config import Augment, Data, Ema, Eval, Mix, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise: README_revenge.md, ViT-S.
RECIPE = Recipe(
    name="deit3_small",
    model=Model(
        name="deit3_small_patch16_224",
        drop_path=0.05,
        drop_path_rule="uniform",  # deit/models_v2.py
        layer_scale=1e-4,  # deit/models_v2.py; timm's own default is 1e-6
    ),
    data=Data(classes=1000, images=1_281_167, repeats=3),  # ImageNet-1k, --repeated-aug
    augment=Augment(policy="three", jitter=0.3),  # --ThreeAugment --color-jitter 0.3, no erasing
    mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0, loss="bce"),  # --bce-loss, no smoothing
    optim=Optim(
        name="lamb",
        lr=4e-3,
        lr_batch=0,  # --unscale-lr
        weight_decay=0.05,
        warmup_epochs=5,
        warmup_lr=1e-6,
        min_lr=1e-5,  # deit/main.py
    ),
    ema=Ema(decay=0.99996, warmup=False),  # deit/main.py
    eval=Eval(crop_ratio=1.0),  # DeiT III evaluates so: README_revenge.md
    batch=2048,
    virtual_ranks=8,  # 256 images on each of 8 GPUs
    epochs=800,
)

if __name__ == "__main__":
    main(RECIPE)
