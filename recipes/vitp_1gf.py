"""ViT_P-1GF: vitc_1gf with the usual patchify stem and 12 blocks (2106.14881, Tables 1, 2 and 4).

Expect 33.2 % error after 100 epochs, 27.7 % after 400 (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/vitp_1gf.py --data DIR --output OUT
       with SGD (Table 4, tuned at 50 epochs): --optim.name sgd --optim.nesterov --optim.lr 1.9 \\
           --optim.warmup-lr 0.19 --optim.weight-decay 1.3e-5
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_1gf import RECIPE as VITC_1GF

RECIPE = replace(
    VITC_1GF,
    name="vitp_1gf",
    # width 192, 3 heads, 12 blocks: Table 1; 4,830,376 parameters
    model=replace(VITC_1GF.model, name="vitp_1gf"),
)

if __name__ == "__main__":
    main(RECIPE)
