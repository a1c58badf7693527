"""Weights and training states in safetensors files: never pickles, never half-written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = [
    "load_training_state",
    "load_weights",
    "read_tensors",
    "round_weights",
    "save_training_state",
    "save_weights",
    "write_tensors",
]


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Writes tensors and JSON metadata to one safetensors file, atomically.

    The same tensors and metadata give the same bytes. A file of that name is replaced only once
    the new one is complete.

    Args:
        path: the file; its folder is made if it is not there.
        tensors: by name, any device and memory format.
        metadata: anything that JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    # One key only: safetensors does not promise an order of several.
    header = {"irevnet": json.dumps(metadata, sort_keys=True)}
    content = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata=header,
    )
    # Not safetensors' save_file: its files can be read by their owner alone.
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote: tensors on the CPU, and the metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, truncated or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["irevnet"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or not a safetensors file of irevnet: {error}"
        ) from error


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model's parameters in ``dtype``, its buffers as they are; see :func:`write_tensors`.

    Parameters that ``dtype`` cannot hold are rounded: see :func:`round_weights`.
    """
    parameters = {name: p.to(dtype) for name, p in model.named_parameters()}
    write_tensors(path, {**model.state_dict(), **parameters}, metadata)


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds parameters to what a file of ``dtype`` can hold, so that what is measured is stored.

    Raises:
        ValueError: if a parameter is too large for ``dtype``; nothing is rounded then.
    """
    rounded = {name: p.to(dtype).to(p.dtype) for name, p in model.named_parameters()}
    for name, value in rounded.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} holds values that {dtype} cannot: store float32 instead")
    for name, p in model.named_parameters():
        p.copy_(rounded[name])


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies ``tensors`` into ``model``'s parameters and buffers, all of them or none.

    Args:
        model: the network.
        tensors: its state by name.
        source: where they come from, for the error message.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape or kind (integers for
            floating point).
    """
    state = model.state_dict()
    missing = sorted(state.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - state.keys())
    reshaped = [
        f"{name}: {tuple(tensors[name].shape)} instead of {tuple(state[name].shape)}"
        for name in state.keys() & tensors.keys()
        if tensors[name].shape != state[name].shape
    ]
    retyped = [
        f"{name}: {tensors[name].dtype} instead of {state[name].dtype}"
        for name in state.keys() & tensors.keys()
        if tensors[name].is_floating_point() != state[name].is_floating_point()
    ]
    if missing or unexpected or reshaped or retyped:
        problems = [
            f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", reshaped),
                ("of another kind", retyped),
            )
            if names
        ]
        raise ValueError(
            f"{source} holds the weights of another network than this "
            f"{type(model).__name__}: {'; '.join(problems)}"
        )
    model.load_state_dict(dict(tensors))


def save_training_state(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: Mapping[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Writes the model and the optimizer's momentum, all that an interrupted run needs.

    Args:
        path: the file.
        model: the network in training.
        optimizer: SGD over ``model.parameters()``, in that order.
        metadata: where the run stands, see :func:`irevnet.training.train`.
        average: the moving average of the weights, where one is kept.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    write_tensors(path, tensors, metadata)


def load_training_state(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> dict[str, Any]:
    """Restores what :func:`save_training_state` wrote, and returns its metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds the state of another network.
    """
    tensors, metadata = read_tensors(path)
    for module, prefix in ((model, "model."), (average, "average.")):
        if module is not None:
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            load_weights(module, state, str(path))
    for name, parameter in model.named_parameters():
        momentum = tensors.get(f"momentum.{name}")
        if momentum is not None:
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    return metadata
