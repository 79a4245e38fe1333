"""DeiT III-B/16 on ImageNet-21k, 240 epochs: deit3_small_in21k with another model (2204.07118; README_revenge.md).

Expect 85.7 % top-1 on ImageNet-1k after deit3_base_in21k_in1k (README_revenge.md).  Not run here: no data, no GPU.
Run:   accelerate launch recipes/deit3_base_in21k.py --data DIR --output OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit3_small_in21k import RECIPE as DEIT3_SMALL_IN21K

# Unless a field says otherwise: README_revenge.md, ViT-B on ImageNet-21k.
RECIPE = replace(
    DEIT3_SMALL_IN21K,
    name="deit3_base_in21k",
    model=replace(DEIT3_SMALL_IN21K.model, name="deit3_base_patch16_224", drop_path=0.1),
    virtual_ranks=32,  # 64 images on each of 32 GPUs
)

if __name__ == "__main__":
    main(RECIPE)
