"""The recipe of the GPU tests, as a process of its own runs it: ten steps of 256 images of 32 px."""

from dataclasses import replace

from pipeline.run import main
from tests.tiny import TINY

RECIPE = replace(
    TINY,
    name="card",
    model=replace(TINY.model, img_size=32, width=64, heads=1),
    data=replace(TINY.data, images=512, workers=0),
    batch=256,
    virtual_ranks=4,
    epochs=5,
    checkpoint=replace(TINY.checkpoint, every_steps=0),
)
STEPS = 10

if __name__ == "__main__":
    main(RECIPE)
