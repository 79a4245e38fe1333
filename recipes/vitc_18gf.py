"""ViT_C-18GF: vitc_4gf with another model, whose stem has two convolutions more (2106.14881, Tables 1, 2 and 4).

Expect 18.4 % error after 100 epochs, 17.0 % after 400 (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/vitc_18gf.py --data DIR --output OUT
       with SGD (Table 4, tuned at 50 epochs): --optim.name sgd --optim.nesterov --optim.lr 1.1 \\
           --optim.warmup-lr 0.11 --optim.weight-decay 2.7e-5
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_4gf import RECIPE as VITC_4GF

RECIPE = replace(
    VITC_4GF,
    name="vitc_18gf",
    # width 768, 12 heads, 11 blocks: Table 1; 81,573,160 parameters
    model=replace(VITC_4GF.model, name="vitc_18gf"),
)

if __name__ == "__main__":
    main(RECIPE)
