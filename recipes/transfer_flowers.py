"""A ResNet-50 on Flowers-102 by the guide: feature extraction, then fine-tuning with a rate for each part.

The guide reports 91 to 94 % after feature extraction and more than 96 % after fine-tuning. It trains on the 6,149
images of the official test split and validates on the other 2,040; DeiT's figures are of the reverse.  It gives no
batch, schedule, image size or strength of augmentation: those here are ours, and so is the crop, of training and of
evaluation, without which images have no common size.  Not run here: the weights cannot be fetched on the machines we
test on.
Run:   vitrail shards build torchvision:Flowers102 DIR
       accelerate launch recipes/transfer_flowers.py --data DIR --output OUT
       on DeiT's split, of 2,040 and 6,149 images: --data.splits train=train+val val=test
       the guide's other models: --model.name resnet152.tv2_in1k
       with a rate for each layer: --model.name vgg16_bn --model.dropout 0.5 --finetune.rates linear \\
           --finetune.decay 1e-3
"""

from pipeline.config import Augment, Data, Ema, Eval, Finetune, Model, Optim, Recipe
from pipeline.run import main

# Unless a field says otherwise, ours: the guide gives none.
RECIPE = Recipe(
    name="transfer_flowers",
    model=Model(name="resnet50.tv2_in1k", pretrained=True),  # torchvision's IMAGENET1K_V2
    data=Data(classes=102, images=6_149, splits=("train=test", "val=train+val")),  # the guide's
    # ours: the crop and the strengths; colour, mirror, rotation and shear are the guide's
    augment=Augment(crop="resized", scale=(0.5, 1.0), jitter=0.2, rotate=15.0, shear=10.0),
    finetune=Finetune(
        strategy="gradual",  # the guide
        head_epochs=16,  # only the new layer
        head_lr=1e-3,  # the guide
        rates="divided",  # fc 1e-4, layer4 3.33e-5, layer3 1.11e-5, ..., conv1 1.37e-7
        decay=3.0,  # the guide: each part a third of the one behind it
    ),
    optim=Optim(
        name="adam",  # the guide
        lr=1e-4,  # the guide: of the head, in the second phase
        lr_batch=0,
        weight_decay=0.0,  # not stated: Adam's default
        warmup_epochs=0,  # not stated
        min_lr=1e-4,  # not stated: a rate that stays where it is
    ),
    ema=Ema(decay=0.0),
    eval=Eval(crop_ratio=0.875),  # ours: the guide names no crop
    batch=64,
    virtual_ranks=1,
    epochs=24,  # 16 and 8: the guide
)

if __name__ == "__main__":
    main(RECIPE)
