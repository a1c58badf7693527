"""Whether the reversible backward gives the gradients of stored activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import irevnet
from benchmarks.settings import BIJECTIVE, RELEASED, Save, Settings, built
from benchmarks.steps import gradients, relative_difference, relu_signs, smooth
from irevnet.runs import find_run
from irevnet.weights import read_tensors
from irevnet.zoo import model_arguments

__all__ = ["gradient_agreement", "trained_network"]

Activation = Callable[[torch.nn.Module], torch.nn.Module]


def gradient_agreement(settings: Settings, results: dict[str, Any], save: Save) -> None:
    """Compares gradients of the reversible backward with those of stored activations."""
    results["networks"] = []
    for name in ("irevnet_digits", "irevnet_digits_bijective"):
        try:
            trained = irevnet.create_model(name, pretrained="digits")
        except ValueError as error:
            results.setdefault("left_out", {})[name] = str(error)
            continue
        weights = "trained, from the zoo"
        arguments = _overrides_of(name)
        results["networks"].append(_agreement(settings, name, arguments, trained, weights))
        save()
    # Dropout has no weights, so weights trained with it also serve without it.
    for name, kinds in ((RELEASED, ({}, {"dropout": 0.0})), (BIJECTIVE, ({},))):
        trained, weights = trained_network(settings, name)
        for more in kinds:
            arguments = settings.arguments(name, None, **more)
            results["networks"].append(_agreement(settings, name, arguments, trained, weights))
            save()
    # The remaining difference, if no rounding error can switch a ReLU on or off.
    results["smooth"] = []
    for name in settings.blocks:
        trained, weights = trained_network(settings, name, dropout=0.0, activation=smooth)
        arguments = settings.arguments(name, dropout=0.0)
        row = _agreement(settings, name, arguments, trained, weights, activation=smooth)
        results["smooth"].append(row)
        save()


def _overrides_of(name: str) -> dict[str, Any]:
    """The arguments with which the zoo's trained network of that name was built."""
    return read_tensors(find_run(name, "digits").path)[1]["overrides"]


def _unchanged(model: torch.nn.Module) -> torch.nn.Module:
    return model


def trained_network(
    settings: Settings,
    name: str,
    activation: Activation = _unchanged,
    **more: Any,  # noqa: ANN401
) -> tuple[torch.nn.Module, str]:
    """A network after a few training steps on images, and a description of its training."""
    model = activation(built(settings, "stored", name, None, **more))
    size = settings.batch_size
    images, labels, data = settings.batch(model, size * settings.training_steps)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model, f"{settings.training_steps} steps with batches of {size}, {data}"


def _agreement(
    settings: Settings,
    name: str,
    arguments: dict[str, Any],
    trained: torch.nn.Module,
    weights: str,
    activation: Activation = _unchanged,
) -> dict[str, Any]:
    """Relative differences of all parameters' gradients, in training mode, at given weights."""
    state = list(trained.state_dict().values())

    def gradient(dtype: torch.dtype, **how: str) -> tuple[Tensor, dict[str, Tensor]]:
        model = activation(irevnet.create_model(name, **{**arguments, **how}))
        # Match by order: the names count layers, and a network without dropout has fewer.
        model.load_state_dict(dict(zip(model.state_dict(), state, strict=True)))
        model.to(settings.device, dtype).train()
        images, labels, _ = settings.batch(model, settings.batch_size)
        with relu_signs(model) as signs:
            return gradients(model, images.to(dtype), labels), signs

    stored, signs = gradient(torch.float32)
    reversible, signs_again = gradient(torch.float32, backward="reversible")
    exact, _ = gradient(torch.float64)
    exact_again, _ = gradient(torch.float64, backward="reversible")
    fixed, _ = gradient(torch.float32, streams="fixed")
    fixed_again, _ = gradient(torch.float32, backward="reversible", streams="fixed")
    row = {
        "network": name,
        "dropout": model_arguments(name, **arguments)["dropout"],
        "weights": weights,
        "batch_size": settings.batch_size,
        "float32": relative_difference(reversible, stored),
        "float64": relative_difference(exact_again, exact),
        "fixed": relative_difference(fixed_again, fixed),
        "relus": sum(sign.numel() for sign in signs.values()),
        "relus_that_flip": sum(
            (sign != signs_again[layer]).sum().item() for layer, sign in signs.items()
        ),
    }
    if row["dropout"] == 0:  # dropout masks differ between dtypes
        row["float32_stored_against_float64"] = relative_difference(stored, exact)
        row["float32_reversible_against_float64"] = relative_difference(reversible, exact)
        row["fixed_against_float64"] = relative_difference(fixed, exact)
    return row
