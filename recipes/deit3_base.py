"""DeiT III-B/16, 800 epochs at 192 px, ImageNet-1k: deit3_small with another model (2204.07118; README_revenge.md).

Expect 83.8 % top-1 after deit3_base_224, which goes on from its weights (README_revenge.md).
Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_base.py --data DIR --output OUT
       accelerate launch recipes/deit3_base_224.py --data DIR --output OUT-224 --model.weights OUT/model.safetensors
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit3_small import RECIPE as DEIT3_SMALL

# Unless a field says otherwise: README_revenge.md, ViT-B.
RECIPE = replace(
    DEIT3_SMALL,
    name="deit3_base",
    model=replace(DEIT3_SMALL.model, name="deit3_base_patch16_224", img_size=192, drop_path=0.2),
    optim=replace(DEIT3_SMALL.optim, lr=3e-3),
)

if __name__ == "__main__":
    main(RECIPE)
