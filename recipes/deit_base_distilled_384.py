"""DeiT-B distilled, fine-tuned at 384 px while the teacher goes on teaching (2012.12877, section 6; Table 3).

The official code refuses to fine-tune with a teacher.  Numbers: the fine-tuning command of deit/README_deit.md.
Expect 84.5 % top-1 (Table 3, from 300 epochs at 224 px).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_base_distilled_384.py --data DIR --output OUT
       --model.checkpoint RUN/model.safetensors starts from weights of yours, their position embeddings resized
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_base_distilled import RECIPE as DEIT_BASE_DISTILLED

RECIPE = replace(
    DEIT_BASE_DISTILLED,
    name="deit_base_distilled_384",
    model=replace(
        DEIT_BASE_DISTILLED.model,
        img_size=384,  # 87,630,032 parameters
        drop_path=0.0,  # the published run was in evaluation mode (deit issues 167 and 177)
        pretrained=True,  # timm's deit_base_distilled_patch16_224.fb_in1k, unless a checkpoint is named
    ),
    # "the same target resolution" for the teacher, section 6
    distill=replace(DEIT_BASE_DISTILLED.distill, img_size=384),
    # flat after warm-up; README_deit.md: lr 5e-6 for a batch of 512, min-lr 5e-6, weight decay 1e-8
    optim=replace(DEIT_BASE_DISTILLED.optim, lr=5e-6, min_lr=5e-6, weight_decay=1e-8),
    batch=512,  # README_deit.md: 32 on each of 16 GPUs
    epochs=30,  # README_deit.md; the paper says 25
)

if __name__ == "__main__":
    main(RECIPE)
