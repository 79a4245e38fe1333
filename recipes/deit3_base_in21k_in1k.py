"""DeiT III-B/16 from ImageNet-21k, fine-tuned on ImageNet-1k: deit3_small_in21k_in1k with another model (2204.07118).

Expect 85.7 % top-1 (README_revenge.md).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_base_in21k_in1k.py --data DIR --output OUT \\
           --model.weights RUN/model.safetensors --model.new-head
       RUN is that of deit3_base_in21k
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit3_small_in21k_in1k import RECIPE as DEIT3_SMALL_IN21K_IN1K

# Unless a field says otherwise: README_revenge.md, ViT-B from ImageNet-21k.
RECIPE = replace(
    DEIT3_SMALL_IN21K_IN1K,
    name="deit3_base_in21k_in1k",
    model=replace(DEIT3_SMALL_IN21K_IN1K.model, name="deit3_base_patch16_224", drop_path=0.15),
    virtual_ranks=32,  # 64 images on each of 32 GPUs
)

if __name__ == "__main__":
    main(RECIPE)
