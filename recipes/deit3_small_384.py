"""DeiT III-S/16 fine-tuned at 384 px: deit3_base_224 with the small model (2204.07118; README_revenge.md).

Expect 83.4 % top-1 (README_revenge.md).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit3_small_384.py --data DIR --output OUT --model.weights RUN/model.safetensors
       RUN is that of deit3_small, whose position embeddings are resized
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit3_base_224 import RECIPE as DEIT3_BASE_224

# Unless a field says otherwise: README_revenge.md, ViT-S at 384 px.
RECIPE = replace(
    DEIT3_BASE_224,
    name="deit3_small_384",
    model=replace(DEIT3_BASE_224.model, name="deit3_small_patch16_224", img_size=384, drop_path=0.0),
)

if __name__ == "__main__":
    main(RECIPE)
