"""ViT_C-1GF: vitc_4gf with another model (2106.14881, Tables 1, 2 and 4).

Expect 28.6 % error after 100 epochs, 24.7 % after 400 (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/vitc_1gf.py --data DIR --output OUT
       with SGD (Table 4, tuned at 50 epochs): --optim.name sgd --optim.nesterov --optim.lr 1.9 \\
           --optim.warmup-lr 0.19 --optim.weight-decay 1.3e-5
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_4gf import RECIPE as VITC_4GF

RECIPE = replace(
    VITC_4GF,
    name="vitc_1gf",
    # width 192, 3 heads, 11 blocks: Table 1; 4,567,936 parameters
    model=replace(VITC_4GF.model, name="vitc_1gf"),
)

if __name__ == "__main__":
    main(RECIPE)
