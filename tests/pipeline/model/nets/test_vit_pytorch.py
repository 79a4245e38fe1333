"""The ViT of vit_pytorch."""

import torch

from pipeline.model.build import build_model, parameter_count
from recipes import vit_cifar10_small


def test_the_vit_of_vit_pytorch_has_its_parameters_and_its_start() -> None:
    net = build_model(vit_cifar10_small.RECIPE.model, 10, seed=0)
    assert parameter_count(net) == 425_482
    assert 0.9 < net.pos_embed.std() < 1.1
    images = torch.rand(2, 3, 32, 32)
    # its own words: einops' 'b c (h p) (w q) -> b (h w) (p q c)', with c outermost as in the convolution's weights
    patches = images.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 192)
    embed = net.patch_embed
    expected = embed.norm(embed.pixel_norm(patches) @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    torch.testing.assert_close(embed(images), expected)
