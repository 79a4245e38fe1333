"""RegNetY-4GF, a teacher of DeiT's Table 2: teacher_regnety16gf with another model (2012.12877, section 5.2).

Expect 80.0 % top-1, and 82.7 % of DeiT-B distilled from it (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/teacher_regnety4gf.py --data DIR --output OUT
       accelerate launch recipes/deit_base_distilled.py --data DIR --output RUN --distill.teacher local-dir:OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.teacher_regnety16gf import RECIPE as TEACHER_REGNETY16GF

RECIPE = replace(
    TEACHER_REGNETY16GF,
    name="teacher_regnety4gf",
    model=replace(TEACHER_REGNETY16GF.model, name="regnety_040"),  # Table 2; 21 M parameters: Table 5
)

if __name__ == "__main__":
    main(RECIPE)
