"""The small recipe that the tests train, and the data set that they train it on."""

from dataclasses import replace
from typing import Final

from pipeline.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Checkpoint,
    Data,
    Ema,
    Eval,
    Log,
    Mix,
    Model,
    Optim,
    Recipe,
)

TINY: Final = Recipe(
    name="tiny",
    model=Model(
        name="deit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        width=32,
        depth=2,
        heads=2,
        drop_path=0.3,
        mean=IMAGENET_MEAN,  # as a request resolves them
        std=IMAGENET_STD,
    ),
    data=Data(classes=4, images=70, repeats=3, window=16, workers=1),
    augment=Augment(crop="resized", rand_ops=2, erase=0.5),
    mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0, smoothing=0.1),
    optim=Optim(lr=1e-3, lr_batch=0, warmup_epochs=1),
    ema=Ema(decay=0.9),
    eval=Eval(every_epochs=0, batch=8, crop_ratio=0.875),
    checkpoint=Checkpoint(every_steps=2, every_minutes=0),
    log=Log(every_steps=1),
    batch=12,
    virtual_ranks=3,
    epochs=4,
    precision="fp32",
)
STEPS: Final = 4 * (70 // 12)

# for runs in this process, without loader processes
HERE: Final = replace(TINY, data=replace(TINY.data, workers=0))

# for every engine: equal shares on two processes, and batch norm, whose statistics no engine may change
ENGINES: Final = replace(
    HERE,
    name="engines",
    batch=16,
    virtual_ranks=4,
    model=replace(HERE.model, name="vitc_1gf"),
    optim=replace(HERE.optim, clip=0.5),
    checkpoint=replace(HERE.checkpoint, every_steps=3),
)
