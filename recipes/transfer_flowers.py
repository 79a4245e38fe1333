"""A ResNet-50 on Flowers-102 by the guide: feature extraction, then fine-tuning with a rate for each part.

The guide reports 91 to 94 % after feature extraction and more than 96 % after fine-tuning, with the official test split
as training data; batch, schedule and image size are not given and ours.  Not run here: the weights cannot be fetched on
the machines we test on.
Run:   vitrail shards build torchvision:Flowers102 DIR
       accelerate launch recipes/transfer_flowers.py --data DIR --output OUT
       the guide's other models: --model.name resnet152.tv2_in1k
       with a rate for each layer: --model.name vgg16_bn --finetune.rates linear --finetune.decay 1e-3
"""

from pipeline.config import Augment, Data, Ema, Eval, Finetune, Model, Optim, Recipe
from pipeline.run import main

RECIPE = Recipe(
    name="transfer_flowers",
    model=Model(name="resnet50.tv2_in1k", pretrained=True),  # torchvision's IMAGENET1K_V2
    data=Data(classes=102, images=1_020),
    augment=Augment(crop="resized", scale=(0.5, 1.0), jitter=0.2, rotate=15.0, shear=10.0),
    finetune=Finetune(
        strategy="gradual",
        head_epochs=16,  # only the new layer
        head_lr=1e-3,
        rates="divided",  # fc 1e-4, layer4 3.33e-5, layer3 1.11e-5, ..., conv1 1.37e-7
        decay=3.0,
    ),
    optim=Optim(name="adam", lr=1e-4, lr_batch=0, weight_decay=0.0, warmup_epochs=0, min_lr=1e-4),
    ema=Ema(decay=0.0),
    eval=Eval(crop_ratio=0.875),
    batch=64,
    virtual_ranks=1,
    epochs=24,  # 16 and 8
)

if __name__ == "__main__":
    main(RECIPE)
