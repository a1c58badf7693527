"""Converts networks of the authors' released code of 2018, and of pytorchcv, to this package's.

The released code (https://github.com/jhjacobsen/pytorch-i-revnet) defines the same network with the
channels of its states in another order: its space-to-depth puts the offset in a block of pixels
before the channel, :class:`~irevnet.reversible.layers.SpaceToDepth` puts it after the channel.
Inside the network this is a permutation within each half, which permuted weights compensate. At the
entry it also decides which pixels go into which half, so a converted network keeps the entry of the
released code.

pytorchcv (https://github.com/osmr/pytorchcv) contains the released ILSVRC network, with its trained
weights, under the name ``irevnet301``: the same network with other tensor names.
"""

import math
import os
import pickle
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from irevnet.network.model import IRevNet
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.layers import OffsetFirst
from irevnet.weights import load_weights
from irevnet.zoo import create_model

__all__ = [
    "IMAGENET_NORMALIZATION",
    "ReleasedIRevNet",
    "convert_released",
    "representation_permutation",
]

# From the released ILSVRC script, which took it from PyTorch's examples.
IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_NAMES = ["irevnet_b", "irevnet_cifar"]


def convert_released(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    name: str = "irevnet_cifar",
    **overrides: Any,  # noqa: ANN401
) -> IRevNet:
    """Builds the network of a checkpoint of the released code, or of pytorchcv's ``irevnet301``.

    The network gives the logits of the released one, and its representations up to
    :func:`representation_permutation`. It expects images that are normalised as in the released
    training scripts: minus the mean of each colour, divided by its standard deviation. With
    ``normalization=IMAGENET_NORMALIZATION`` it takes images with values from 0 to 1.

    Args:
        checkpoint: a file that ``torch.save`` wrote, or its content: a state dict of the released
            network or of pytorchcv's, alone or in a dict under ``"state_dict"``, with or without
            the prefix ``module.`` of ``DataParallel``. ``num_batches_tracked``, which early
            PyTorch did not count, may be missing.
        name: ``"irevnet_cifar"`` or ``"irevnet_b"``.
        **overrides: arguments of :class:`~irevnet.network.model.IRevNet` in place of those of the
            zoo, as for :func:`~irevnet.zoo.create_model`. ``num_classes`` and ``kernel_sizes``
            are by default those of the checkpoint: F of the released (b) has three 3x3
            convolutions, that of the paper, which the zoo follows, only one. ``entry_order`` is
            always ``"offset"``.

    Returns:
        The network, on the CPU, float32, in evaluation mode. In further training, the batch norm
        of its classifier updates its statistics with momentum 0.9, as in the released code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the name or an override is unknown, if the file is damaged, truncated, not
            a checkpoint or has code in its pickle, which is never run, or if the weights belong to
            another network.
    """
    if name not in _NAMES:
        raise ValueError(f"name must be one of {_NAMES}, got {name!r}")
    if isinstance(checkpoint, Mapping):
        source = "the checkpoint"
        tensors = _state_dict(checkpoint, source)
    else:
        source = str(checkpoint)
        tensors = _state_dict(_read(Path(checkpoint)), source)
    arguments = {**_architecture(tensors), **overrides, "entry_order": "offset"}
    model = cast("IRevNet", create_model(name, **arguments))
    layers = ReleasedIRevNet(model)
    untracked = {
        key: tensor
        for key, tensor in layers.state_dict().items()
        if key.endswith(".num_batches_tracked")
    }
    load_weights(layers, {**untracked, **tensors}, source)
    _permute_weights(model)
    model.classifier.norm.momentum = 0.9
    return model.eval()


def representation_permutation(model: IRevNet) -> Tensor:
    """The position of each channel of a representation in the released network.

    If ``theirs`` is the representation of an image ``x`` in the released network, then the
    converted one gives ``model.encode(x) == theirs[:, representation_permutation(model)]``.

    Args:
        model: a network that :func:`convert_released` returned.

    Returns:
        A permutation of the channels, int64, ``(2 * half_channels[-1],)``.

    Raises:
        ValueError: if the entry is not that of the released code; a half then holds other pixels,
            and the representations are different functions of the image.
    """
    if model.entry.factor > 1 and not isinstance(model.entry, OffsetFirst):
        raise ValueError(
            f"model must be a network that convert_released returned, got one whose entry is "
            f"{model.entry}"
        )
    half = _half_permutations(model)[-1]
    return torch.cat([half, half + len(half)])


class ReleasedIRevNet(nn.Module):
    """The layers of a network under the names that the released code gives them.

    The network shares these layers, so weights loaded here are loaded into the network, and errors
    name the keys of the checkpoint.

    Args:
        model: the network.
    """

    def __init__(self, model: IRevNet) -> None:
        super().__init__()
        self.stack = nn.ModuleList()
        for block in _blocks(model):
            residual = cast("nn.Sequential", block.residual)
            layers = [layer for layer in residual if not isinstance(layer, nn.Dropout)]
            # The released code has a dropout layer before the last batch norm, whatever its rate.
            layers.insert(-3, nn.Identity())
            self.stack.append(nn.ModuleDict({"bottleneck_block": nn.Sequential(*layers)}))
        self.bn1 = model.classifier.norm
        self.linear = model.classifier.linear


def _blocks(model: IRevNet) -> list[CouplingBlock]:
    return list(model.blocks)


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise ValueError(
                    f"{path} asks to run code ({refused[1]}), which is refused: it is damaged "
                    "or holds more than tensors, such as the whole models that the released "
                    "CIFAR-10 script saves. If you trust the file, save the weights alone, in the "
                    f"folder of the released code: torch.save(torch.load({str(path)!r}, "
                    "weights_only=False)['model'].state_dict(), 'weights.pt')"
                ) from error
            raise ValueError(
                f"{path} is damaged, truncated or not a checkpoint of PyTorch"
            ) from error


def _state_dict(content: object, source: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} must hold a state dict, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} must hold a state dict, tensors by name, alone or under 'state_dict'; "
                f"got {type(value).__name__} under {name!r}"
            )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return (
        _from_pytorchcv(tensors)
        if "features.stage1.unit1.bottleneck.conv1.weight" in tensors
        else tensors
    )


_UNIT = re.compile(
    r"features\.stage(\d+)\.unit(\d+)\.bottleneck\.(conv[123](?:\.bn|\.conv)?)\.(\w+)"
)
_LAYERS = [
    "conv1.bn",
    "",
    "conv1.conv",
    "conv2.bn",
    "",
    "conv2.conv",
    "",
    "conv3.bn",
    "",
    "conv3.conv",
]
"""pytorchcv's names of the layers of a bottleneck, in the order of the released code."""


def _from_pytorchcv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of pytorchcv's network under the names of the released code."""
    units = sorted({(int(m[1]), int(m[2])) for name in tensors if (m := _UNIT.fullmatch(name))})
    renamed = {}
    for name, tensor in tensors.items():
        if match := _UNIT.fullmatch(name):
            index = units.index((int(match[1]), int(match[2])))
            # The first bottleneck has no leading batch norm and ReLU.
            layers = _LAYERS if index else ["conv1", *_LAYERS[3:]]
            if match[3] in layers:
                layer = layers.index(match[3])
                name = f"stack.{index}.bottleneck_block.{layer}.{match[4]}"
        elif name.startswith("features.final_postactiv.bn."):
            name = name.replace("features.final_postactiv.bn", "bn1")
        elif name.startswith("output."):
            name = name.replace("output", "linear")
        renamed[name] = tensor
    return renamed


def _architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of the released code's tensors say about the network."""
    kernels = (tensors.get(f"stack.0.bottleneck_block.{layer}.weight") for layer in (0, 3, 7))
    sizes = tuple(kernel.shape[-1] for kernel in kernels if kernel is not None and kernel.ndim == 4)
    # load_weights rejects any other sizes, with a message that names the file.
    overrides: dict[str, Any] = {"kernel_sizes": sizes if sizes == (1, 3, 1) else (3, 3, 3)}
    linear = tensors.get("linear.weight")
    if linear is not None and linear.ndim == 2 and len(linear) > 0:
        overrides["num_classes"] = len(linear)
    return overrides


def _half_permutations(model: IRevNet) -> list[Tensor]:
    """Where the released code has each channel of a half, before every block and at the end.

    It is the same for both halves, because they pass through the same space-to-depth.
    """
    factors = [block.downsample.factor for block in _blocks(model)]
    permutations = [torch.arange(model.channels // 2 // math.prod(factors) ** 2)]
    for factor in factors:
        half = permutations[-1]
        # Here S maps channel c to c * factor**2 + offset; there, to offset * len(half) + c.
        permutations.append((half[:, None] + len(half) * torch.arange(factor**2)).flatten())
    return permutations


@torch.no_grad()
def _permute_weights(model: IRevNet) -> None:
    """Permutes weights from the released code's order of channels to that of this package."""
    permutations = _half_permutations(model)
    for block, (before, after) in zip(_blocks(model), pairwise(permutations), strict=True):
        residual = cast("nn.Sequential", block.residual)
        first, _, last = (layer for layer in residual if isinstance(layer, nn.Conv2d))
        if isinstance(residual[0], nn.BatchNorm2d):
            _permute_norm(residual[0], before)
        first.weight.copy_(first.weight[:, before])
        last.weight.copy_(last.weight[after])
    half = permutations[-1]
    merged = torch.cat([half, half + len(half)])
    _permute_norm(model.classifier.norm, merged)
    model.classifier.linear.weight.copy_(model.classifier.linear.weight[:, merged])


def _permute_norm(norm: nn.BatchNorm2d, permutation: Tensor) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if tensor is not None:
            tensor.copy_(tensor[permutation])
