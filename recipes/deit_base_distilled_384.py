"""DeiT-B distilled, fine-tuned at 384 px while the teacher goes on teaching (2012.12877, section 6; Table 3).

The official code refuses to fine-tune with a teacher.  Numbers: the fine-tuning command of deit/README_deit.md.
Expect 84.5 % top-1 (Table 3, from 300 epochs at 224 px).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_base_distilled_384.py --data DIR --output OUT
       from weights of yours, their position embeddings resized: --model.weights RUN/model.safetensors
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_base_384 import RECIPE as DEIT_BASE_384
from recipes.deit_base_distilled import RECIPE as DEIT_BASE_DISTILLED

RECIPE = replace(
    DEIT_BASE_384,
    name="deit_base_distilled_384",
    # 87,630,032 parameters
    model=replace(DEIT_BASE_384.model, name="deit_base_distilled_patch16_224"),
    # "the same target resolution" for the teacher, section 6
    distill=replace(DEIT_BASE_DISTILLED.distill, img_size=384),
)

if __name__ == "__main__":
    main(RECIPE)
