"""DeiT-S/16, 300 epochs, ImageNet-1k.  Source: DeiT, arXiv 2012.12877, Tables 1, 3 and 9, and deit/main.py.

Expect 79.8 % top-1 (Table 3; 79.854 % for the released weights).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_small.py --data DIR --output OUT
"""

from pipeline.config import Augment, Data, Ema, Eval, Mix, Model, Optim, Recipe
from pipeline.run import main

RECIPE = Recipe(
    name="deit_small",
    model=Model(
        name="deit_small_patch16_224",  # width 384, 6 heads, 12 blocks: Table 1; 22,050,664 parameters
        img_size=224,  # Table 1
        drop_path=0.1,  # Table 9; the same for Ti, S and B in deit/main.py
    ),
    data=Data(
        classes=1000,  # ImageNet-1k
        images=1_281_167,  # ImageNet-1k
        repeats=3,  # repeated augmentation, section 6; deit/samplers.py
        epoch="views",  # an epoch shows a third of the images, three times: section 6, footnote
    ),
    augment=Augment(
        crop="resized",  # bicubic, 8 to 100 % of the area: timm's defaults, which deit/datasets.py takes
        rand_ops=2,  # timm's two, by rand-m9-mstd0.5-inc1 in deit/main.py
        rand_magnitude=9,  # RandAugment 9/0.5: Table 9
        rand_std=0.5,  # RandAugment 9/0.5: Table 9
        erase=0.25,  # Table 9; mode pixel, one box: deit/main.py
    ),
    mix=Mix(
        mixup_alpha=0.8,  # Table 9 calls 0.8 and 1.0 probabilities; in deit/main.py they are Beta alphas
        cutmix_alpha=1.0,  # Table 9, as mixup_alpha
        prob=1.0,  # deit/main.py
        switch_prob=0.5,  # deit/main.py
        smoothing=0.1,  # Table 9
    ),
    optim=Optim(
        name="adamw",  # Table 9
        lr=5e-4,  # Table 9: 0.0005 x batch / 512
        lr_batch=512,  # Table 9
        weight_decay=0.05,  # Table 9
        warmup_epochs=5,  # Table 9
        warmup_lr=1e-6,  # deit/main.py
        min_lr=1e-5,  # deit/main.py
        clip=0.0,  # Table 9: no clipping
    ),
    ema=Ema(decay=0.99996, warmup=False),  # deit/main.py; no published number uses it (deit issue 67)
    eval=Eval(crop_ratio=0.875),  # 256 to 224, bicubic: deit/datasets.py
    batch=1024,  # Table 9
    virtual_ranks=16,  # 16 GPUs with 64 images each: deit/README_deit.md
    epochs=300,  # Table 9
)

if __name__ == "__main__":
    main(RECIPE)
