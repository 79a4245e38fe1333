"""DeiT-B fine-tuned at 384 px: deit_small_384 with another model (2012.12877, Tables 3 and 5).

Expect 83.1 % top-1 (Table 3; 82.890 % for the released weights).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/deit_base_384.py --data DIR --output OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.deit_small_384 import RECIPE as DEIT_SMALL_384

RECIPE = replace(
    DEIT_SMALL_384,
    name="deit_base_384",
    model=replace(DEIT_SMALL_384.model, name="deit_base_patch16_224"),  # 86,859,496 parameters at 384 px
)

if __name__ == "__main__":
    main(RECIPE)
