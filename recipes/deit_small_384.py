"""DeiT-S fine-tuned at 384 px from weights at 224 px (2012.12877, section 6; deit/README_deit.md).

The paper has no number for DeiT-S at 384 px (B: 83.1 %, see deit_base_384).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_small_384.py --data DIR --output OUT
       from weights of yours, their position embeddings resized: --model.weights RUN/model.safetensors
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_small import RECIPE as DEIT_SMALL

RECIPE = replace(
    DEIT_SMALL,
    name="deit_small_384",
    model=replace(
        DEIT_SMALL.model,
        img_size=384,  # section 6
        drop_path=0.0,  # the published run was in evaluation mode (deit issues 167 and 177)
        pretrained=True,  # timm's published weights at 224 px, unless a checkpoint is named
    ),
    # flat after warm-up; README_deit.md: lr 5e-6 for a batch of 512, min-lr 5e-6, weight decay 1e-8
    optim=replace(DEIT_SMALL.optim, lr=5e-6, min_lr=5e-6, weight_decay=1e-8),
    batch=512,  # README_deit.md: 32 on each of 16 GPUs
    epochs=30,  # README_deit.md; the paper says 25
)

if __name__ == "__main__":
    main(RECIPE)
