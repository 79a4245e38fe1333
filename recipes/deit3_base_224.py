"""DeiT III-B/16, the second step of its training: deit3_base, 20 epochs at 224 px (2204.07118; README_revenge.md).

Expect 83.8 % top-1 (README_revenge.md).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_base_224.py --data DIR --output OUT --model.weights RUN/model.safetensors
       RUN is that of deit3_base, whose position embeddings are resized
"""

from dataclasses import replace

from pipeline.config import Augment, Mix, Optim
from pipeline.run import main
from recipes.deit3_base import RECIPE as DEIT3_BASE

# Unless a field says otherwise: README_revenge.md, ViT-B at 224 px.
RECIPE = replace(
    DEIT3_BASE,
    name="deit3_base_224",
    model=replace(DEIT3_BASE.model, img_size=224, drop_path=0.2),
    data=replace(DEIT3_BASE.data, repeats=1),  # --no-repeated-aug
    augment=Augment(rand_ops=2, rand_magnitude=9, rand_std=0.5),  # rand-m9-mstd0.5-inc1 and no 3-Augment, no erasing
    mix=Mix(
        mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1
    ),  # smoothing 0.1, cross-entropy with soft targets: no --bce-loss
    optim=Optim(
        name="adamw",
        lr=1e-5,
        lr_batch=0,  # --unscale-lr
        weight_decay=0.1,
        warmup_epochs=5,
        warmup_lr=1e-6,
        min_lr=1e-5,  # deit/main.py; so the rate is flat after the warm-up
    ),
    batch=512,  # 64 images on each of 8 GPUs
    virtual_ranks=8,
    epochs=20,
)

if __name__ == "__main__":
    main(RECIPE)
