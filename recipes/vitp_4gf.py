"""ViT_P-4GF: vitc_4gf with the usual patchify stem and 12 blocks (2106.14881, Tables 1 to 4).

Expect 23.3 % error after 100 epochs, 19.6 % after 400 (Table 2).  Not run here: no ImageNet, no GPU.
Run:   accelerate launch recipes/vitp_4gf.py --data DIR --output OUT
       with SGD (Table 4, tuned at 50 epochs): --optim.name sgd --optim.nesterov --optim.lr 1.9 \\
           --optim.warmup-lr 0.19 --optim.weight-decay 1.3e-5
"""

from dataclasses import replace

from pipeline.run import main
from recipes.vitc_4gf import RECIPE as VITC_4GF

RECIPE = replace(
    VITC_4GF,
    name="vitp_4gf",
    model=replace(VITC_4GF.model, name="vitp_4gf"),  # 18,507,112 parameters: Table 1
)

if __name__ == "__main__":
    main(RECIPE)
