"""Networks that timm lacks: `import pipeline.model.nets` registers them with timm."""

from pipeline.model.nets import cifar_resnet, vit_plain, vit_pytorch, vit_stem  # noqa: F401
