"""ViT_C-36GF: vitc_18gf with another model, and a rate of its own (2106.14881, Tables 1, 2 and 4).

Expect 18.3 % error after 100 epochs, 16.8 % after 400 (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/vitc_36gf.py --data DIR --output OUT
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_18gf import RECIPE as VITC_18GF

RECIPE = replace(
    VITC_18GF,
    name="vitc_36gf",
    # width 1024, 16 heads, 13 blocks: Table 1; 167,796,008 parameters
    model=replace(VITC_18GF.model, name="vitc_36gf"),
    optim=replace(
        VITC_18GF.optim,
        lr=6e-4,  # section 6
        weight_decay=0.28,  # section 6
        warmup_lr=6e-5,  # a tenth of the rate: WARMUP_FACTOR of pycls
    ),
)

if __name__ == "__main__":
    main(RECIPE)
