"""Small image models and images for tests of backbones."""

import torch
from torch import nn

from pml_gca.paper.backbones import build_backbone

TINY, TINY_VIT = "test_resnet", "test_vit"  # of timm, with batch normalisation and with a patch embedding


def images(size=64, count=4, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build(name, **kwargs):
    torch.manual_seed(0)
    return build_backbone(name, pretrained=False, **kwargs)


def shake(model, variance=1.0):
    """Give batch normalisation statistics as after training, which show in outputs; leave no weight at 0: all decay."""
    source = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            tensors = (
                (module.weight, 1.0),
                (module.bias, 0.1),
                (module.running_mean, 0.1),
                (module.running_var, variance),
            )
            for tensor, size in tensors:
                tensor.detach().copy_(size * (0.5 + torch.rand(tensor.shape, generator=source)))
    return model
