"""DeiT-B/16 distilled: deit_small_distilled with another model, as in the paper (2012.12877, Tables 1, 3, 9).

Expect 83.4 % top-1 (Table 3; 83.372 % for the released weights).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_base_distilled.py --data DIR --output OUT
       from another teacher of Table 2, DeiT-B (81.9 %): --distill.teacher deit_base_patch16_224.fb_in1k
       from a run of teacher_regnety4gf (82.7 %), -8gf (82.7 %) or -12gf (83.1 %): --distill.teacher local-dir:RUN
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_small_distilled import RECIPE as DEIT_SMALL_DISTILLED

RECIPE = replace(
    DEIT_SMALL_DISTILLED,
    name="deit_base_distilled",
    # 87,338,192 parameters
    model=replace(DEIT_SMALL_DISTILLED.model, name="deit_base_distilled_patch16_224"),
)

if __name__ == "__main__":
    main(RECIPE)
