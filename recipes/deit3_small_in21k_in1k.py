"""DeiT III-S/16 from ImageNet-21k, fine-tuned on ImageNet-1k for 50 epochs (2204.07118; README_revenge.md).

Expect 83.1 % top-1 (README_revenge.md).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_small_in21k_in1k.py --data DIR --output OUT \\
           --model.weights RUN/model.safetensors --model.new-head
       RUN is that of deit3_small_in21k
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit3_small import RECIPE as DEIT3_SMALL
from recipes.deit3_small_in21k import RECIPE as DEIT3_SMALL_IN21K

# Unless a field says otherwise: README_revenge.md, ViT-S from ImageNet-21k.
RECIPE = replace(
    DEIT3_SMALL_IN21K,
    name="deit3_small_in21k_in1k",
    data=replace(DEIT3_SMALL.data, repeats=1),  # ImageNet-1k, --no-repeated-aug
    optim=replace(DEIT3_SMALL_IN21K.optim, lr=3e-4),
    epochs=50,
)

if __name__ == "__main__":
    main(RECIPE)
