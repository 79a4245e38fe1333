"""DeiT-B fine-tuned on iNaturalist 2018 (2012.12877, Tables 6 and 7; settings: deit issues 105 and 141).

Expect 73.2 % top-1 (Table 7).  Not run here: no data, no GPU.
Run:   accelerate launch recipes/transfer_inat18.py --data DIR --output OUT
       iNaturalist 2019: --data.classes 1010 (77.7 %)
"""

from dataclasses import replace

from pipeline.config import Data
from pipeline.run import main
from recipes.deit_base import RECIPE as DEIT_BASE

# Unless a field says otherwise: deit issues 105 and 141.
RECIPE = replace(
    DEIT_BASE,
    name="transfer_inat18",
    model=replace(DEIT_BASE.model, pretrained=True),  # timm's published weights
    data=Data(classes=8142, images=437_513, repeats=3),  # Table 6; as on ImageNet: issues 105 and 141
    augment=replace(DEIT_BASE.augment, erase=0.1),
    optim=replace(DEIT_BASE.optim, lr=7.5e-5, lr_batch=0),  # after scaling, says the author
    batch=768,
    virtual_ranks=8,  # ours: 96 images each
    epochs=360,
)

if __name__ == "__main__":
    main(RECIPE)
