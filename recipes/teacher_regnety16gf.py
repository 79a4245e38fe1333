"""RegNetY-16GF, the teacher of DeiT, trained on the same data with the same augmentation (2012.12877, section 5.2).

The paper gives no optimizer for it; this is DeiT's, stochastic depth included, repeated augmentation not.
Expect 82.9 % top-1 (Table 2).  Not run here: no ImageNet, no GPU.  Its weights are timm's regnety_160.deit_in1k.
Run:   accelerate launch recipes/teacher_regnety16gf.py --data DIR --output OUT
       accelerate launch recipes/deit_small_distilled.py --data DIR --output RUN --distill.teacher local-dir:OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_small import RECIPE as DEIT_SMALL

RECIPE = replace(
    DEIT_SMALL,
    name="teacher_regnety16gf",
    model=replace(
        DEIT_SMALL.model,
        name="regnety_160",  # 84 M parameters: Table 5
        drop_path=0.1,  # not stated: as DeiT's
    ),
    optim=DEIT_SMALL.optim,  # not stated: DeiT's
    # ours: batch norm takes its statistics over a virtual rank, with 3 repeats over 22 images of 64, without over 64
    data=replace(DEIT_SMALL.data, repeats=1),
)

if __name__ == "__main__":
    main(RECIPE)
