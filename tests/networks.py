"""The zoo's networks, so small that their Jacobians are matrices that one can invert."""

import math

import torch
from torch import nn

import irevnet
from irevnet.zoo import model_arguments

# Entries and strides are those of the zoo; images, depth and width are smaller. In the injective
# networks, the zeros still fill the half that the first F reads and a part of the other half.
SMALL = {
    "irevnet_a": {
        "in_shape": (1, 32, 32),
        "blocks": (2, 1, 2, 1),
        "half_channels": (20, 80, 320, 1280),
        "bottleneck_channels": (8, 8, 16, 16),
    },
    "irevnet_b": {
        "in_shape": (1, 32, 32),
        "blocks": (2, 1, 2, 1),
        "half_channels": (8, 32, 128, 512),
        "bottleneck_channels": (8, 8, 16, 16),
    },
    "irevnet_cifar": {"in_shape": (3, 4, 4), "blocks": (3, 2, 2)},
    "irevnet_cifar_bijective": {
        "in_shape": (3, 8, 8),
        "blocks": (2, 2, 2),
        "bottleneck_channels": (8, 16, 32),
    },
    "irevnet_cifar_bijective_3x3": {
        "in_shape": (3, 8, 8),
        "blocks": (2, 2, 2),
        "bottleneck_channels": (8, 16, 32),
    },
    "irevnet_digits": {"blocks": (3, 2, 2)},
    "irevnet_digits_bijective": {"blocks": (2, 2, 2)},
}
IREVNETS = [name for name in irevnet.list_models() if name.startswith("irevnet")]


def _shrunk(name):
    """Overrides for two blocks in each stage, and for the smallest images."""
    arguments = model_arguments(name)
    side = arguments["entry_factor"] * math.prod(arguments["strides"])
    shape = (arguments["in_shape"][0], side, side)
    return {"in_shape": shape, "blocks": (2,) * len(arguments["blocks"])}


# The networks that need no special settings.
SMALL |= {name: _shrunk(name) for name in IREVNETS if name not in SMALL}
with torch.device("meta"):
    BIJECTIVE = [name for name in IREVNETS if irevnet.create_model(name).is_bijective]
INJECTIVE = [name for name in IREVNETS if name not in BIJECTIVE]


def small_irevnet(name, **overrides):
    """A small network of the zoo, float64, in evaluation mode, far from its initial weights."""
    model = irevnet.create_model(name, **{"num_classes": 5, **SMALL[name], **overrides})
    return randomise(model.double()).eval()


def randomise(model):
    """Draws weights with which every F matters; a new network is almost a permutation."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model


def images(model, batch_size=2, *, dtype=torch.float64, wider=1):
    """Random images in [0, 1] of the network's size, ``wider`` times as wide as high."""
    channels, height, width = model.in_shape
    return torch.rand(batch_size, channels, height, width * wider, dtype=dtype)


def jacobian(function, point):
    """The Jacobian of a function of a batch ``(1, ...)``: ``(values out, values in)``, float64.

    Each image of a larger batch gives one row. This works only in evaluation mode, in which a
    network treats every image of a batch independently.
    """
    with torch.no_grad():
        count = function(point).numel()
    batch = point.detach().repeat(count, 1, 1, 1).requires_grad_()
    out = function(batch)
    one_hot = torch.eye(count, dtype=torch.float64).view_as(out)
    (rows,) = torch.autograd.grad(out, batch, one_hot)
    return rows.flatten(1)
