"""Named networks: the paper's, the released code's, those of the experiments, and baselines."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from irevnet.checks import check_positive
from irevnet.network.baselines import ResNet, RevNet
from irevnet.network.downsampling import ProjectedIRevNet, ShuffledRevNet
from irevnet.network.model import IRevNet
from irevnet.runs import find_run
from irevnet.weights import load_weights, read_tensors

__all__ = ["create_model", "list_models", "model_arguments"]

_CIFAR = {"in_shape": (3, 32, 32), "num_classes": 10, "strides": (1, 2, 2)}
_DIGITS = {"in_shape": (1, 8, 8), "num_classes": 10}

_BIJECTIVE_CIFAR: dict[str, Any] = {
    **_CIFAR,
    "entry_factor": 2,
    "half_channels": (6, 24, 96),
    "bottleneck_channels": (64, 128, 256),
}
# Layouts of networks that differ only in their downsampling, which claim C3 compares.
_INJECTIVE_CIFAR: dict[str, Any] = {
    **_CIFAR,
    "entry_factor": 1,
    "half_channels": (16, 64, 256),
    "kernel_sizes": (3, 3, 3),
}
_INJECTIVE_DIGITS: dict[str, Any] = {
    **_DIGITS,
    "entry_factor": 2,
    "strides": (1, 2, 2),
    "blocks": (4, 4, 4),
    "half_channels": (8, 32, 128),
    "bottleneck_channels": (16, 32, 64),
}


def _resnet50(num_classes: int = 1000) -> nn.Module:
    from torchvision.models import resnet50  # takes seconds, and no other network needs it

    check_positive("num_classes", num_classes)
    return resnet50(weights=None, num_classes=num_classes)


_MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    # ILSVRC-2012, table 1 of the paper
    "irevnet_a": (
        IRevNet,
        {
            "entry_factor": 4,
            "blocks": (4, 4, 6, 4),
            "strides": (1, 2, 2, 2),
            "half_channels": (96, 384, 1536, 6144),
        },
    ),
    "irevnet_b": (
        IRevNet,
        {
            "entry_factor": 2,
            "blocks": (6, 16, 72, 6),
            "strides": (2, 2, 2, 2),
            "half_channels": (24, 96, 384, 1536),
        },
    ),
    "revnet56": (RevNet, {}),
    "resnet50": (_resnet50, {}),
    # CIFAR-10: the released code's network; a bijective one with the text's bottleneck, and one
    # with 3x3 kernels and about as many parameters; baselines with about the depth, parameters and
    # multiply-adds of the released code's network
    "irevnet_cifar": (
        IRevNet,
        {
            **_INJECTIVE_CIFAR,
            "blocks": (18, 18, 18),
            "dropout": 0.1,
        },
    ),
    "irevnet_cifar_bijective": (
        IRevNet,
        {
            **_BIJECTIVE_CIFAR,
            "blocks": (6, 6, 6),
        },
    ),
    "irevnet_cifar_bijective_3x3": (
        IRevNet,
        {
            **_BIJECTIVE_CIFAR,
            "blocks": (4, 4, 4),
            "kernel_sizes": (3, 3, 3),
        },
    ),
    "revnet_cifar": (
        RevNet,
        {
            **_CIFAR,
            "stem": "small",
            "stem_channels": 32,
            "units": (9, 9, 9),
            "channels": (128, 256, 1024),
        },
    ),
    # The two layouts with each other's downsampling and 4 blocks a stage, to measure the effect
    # of S
    "projected_irevnet_cifar": (
        ProjectedIRevNet,
        {
            **_INJECTIVE_CIFAR,
            "blocks": (4, 4, 4),
        },
    ),
    "shuffled_revnet_cifar": (
        ShuffledRevNet,
        {
            **_CIFAR,
            "stem": "small",
            "stem_channels": 64,
            "units": (2, 2, 2),
            "channels": (64, 256, 1024),
        },
    ),
    "resnet_cifar": (
        ResNet,
        {
            **_CIFAR,
            "stem": "small",
            "stem_channels": 16,
            "units": (18, 18, 18),
            "channels": (64, 128, 512),
        },
    ),
    # scikit-learn's handwritten digits: all five about 38 layers deep, 0.2 to 0.3 million
    # parameters, stages at 4x4, 2x2 and 1x1
    "irevnet_digits": (IRevNet, _INJECTIVE_DIGITS),
    "irevnet_digits_bijective": (
        IRevNet,
        {
            **_DIGITS,
            "entry_factor": 2,
            "strides": (1, 2, 2),
            "blocks": (4, 4, 4),
            "half_channels": (2, 8, 32),
            "bottleneck_channels": (16, 32, 64),
        },
    ),
    "projected_irevnet_digits": (ProjectedIRevNet, _INJECTIVE_DIGITS),
    "revnet_digits": (
        RevNet,
        {
            **_DIGITS,
            "stem": "small",
            "strides": (2, 2, 2),
            "stem_channels": 16,
            "units": (2, 2, 2),
            "channels": (96, 192, 384),
        },
    ),
    "resnet_digits": (
        ResNet,
        {
            **_DIGITS,
            "stem": "small",
            "strides": (2, 2, 2),
            "stem_channels": 16,
            "units": (4, 4, 4),
            "channels": (48, 96, 192),
        },
    ),
}


def list_models() -> list[str]:
    """Returns the names that :func:`create_model` takes, sorted.

    Example:
        >>> import irevnet
        >>> "irevnet_b" in irevnet.list_models()
        True
    """
    return sorted(_MODELS)


def create_model(
    name: str,
    *,
    pretrained: str | None = None,
    family: str | None = None,
    seed: int | None = None,
    **overrides: Any,  # noqa: ANN401
) -> nn.Module:
    """Builds a network by name, like timm's function of the same name.

    Args:
        name: one of :func:`list_models`.
        pretrained: an experiment whose trained weights come with the repository (``"digits"``,
            ...), or None for random weights. With trained weights, the configuration that was
            trained is the default.
        family: with ``pretrained``, name of the family, needed if several families of the
            experiment have this network.
        seed: with ``pretrained``, seed of the training run; by default that of the published one.
        **overrides: arguments of the network's class in place of those of the zoo, such as
            ``num_classes``.

    Returns:
        The network, on the CPU, float32, in training mode; with ``pretrained`` in evaluation
        mode.

    Raises:
        ValueError: if the name, an override or the experiment is unknown (the message lists what
            is allowed), if the combination cannot work, or if the weights are missing, damaged or
            do not fit.

    Example:
        >>> import irevnet
        >>> model = irevnet.create_model("irevnet_digits", num_classes=2)
        >>> model.num_classes
        2
    """
    arguments = model_arguments(name, **overrides)
    network = _MODELS[name][0]
    if pretrained is None:
        for choice, value in (("family", family), ("seed", seed)):
            if value is not None:
                raise ValueError(f"{choice} chooses trained weights: it needs pretrained")
        return network(**arguments)
    path = find_run(name, pretrained, family=family, seed=seed).path
    tensors, metadata = read_tensors(path)
    if "overrides" not in metadata:
        raise ValueError(f"{path} does not say how its network was built: not weights of the zoo")
    if metadata.get("model", name) != name:
        raise ValueError(f"{path} holds the weights of {metadata['model']}, not of {name}")
    model = network(**{**arguments, **metadata["overrides"], **overrides})
    load_weights(model, tensors, str(path))
    return model.eval()


def model_arguments(name: str, **overrides: Any) -> dict[str, Any]:  # noqa: ANN401
    """All arguments with which :func:`create_model` builds a network.

    A file of weights that stores them can still be read after the zoo has changed.

    Args:
        name: one of :func:`list_models`.
        **overrides: as for :func:`create_model`.

    Raises:
        ValueError: if the name or an override is unknown; the message lists what is allowed.
    """
    if name not in list_models():
        raise ValueError(f"name must be one of {list_models()}, got {name!r}")
    network, defaults = _MODELS[name]
    signature = inspect.signature(network).parameters
    unknown = sorted(set(overrides) - set(signature))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; allowed are {list(signature)}"
        )
    implied = {parameter.name: parameter.default for parameter in signature.values()}
    return {**implied, **defaults, **overrides}
