"""Weights in safetensors files: never pickles, never half-written."""

import hashlib
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
    "load_weights",
    "read_tensors",
    "round_weights",
    "save_weights",
    "write_tensors",
]


_CHECKSUM = "sha256"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Writes tensors and JSON metadata to one safetensors file, atomically.

    The same tensors and metadata give the same bytes. An existing file is replaced only once the
    new one is complete.

    Args:
        path: the file; its folder is created if it does not exist.
        tensors: tensors by name, on any device and in any memory format.
        metadata: anything that JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    checked = {**metadata, _CHECKSUM: _checksum(copies)}
    # One key only: safetensors does not guarantee the order of several.
    content = save(copies, metadata={"irevnet": json.dumps(checked, sort_keys=True)})
    # Not safetensors' save_file, whose files only their owner can read.
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or not a safetensors file of irevnet: {error}"
        ) from error
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{path} is not a safetensors file of irevnet: its metadata is not a mapping"
        )
    # Files from before 2026-11-27 have no checksum.
    if metadata.pop(_CHECKSUM, None) not in (None, _checksum(tensors)):
        raise ValueError(f"{path} is damaged: its tensors do not have the checksum in its metadata")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of tensors on the CPU; safetensors does not store one."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model's parameters in ``dtype``, its buffers unchanged; see :func:`write_tensors`.

    Parameters that ``dtype`` cannot represent are rounded; see :func:`round_weights`.
    """
    parameters = {name: p.to(dtype) for name, p in model.named_parameters()}
    write_tensors(path, {**model.state_dict(), **parameters}, metadata)


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds parameters to ``dtype``, so that measurements use the weights that a file will hold.

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
        source: where the tensors come from, for error messages.

    Raises:
        ValueError: if a tensor is missing, unexpected, of another shape or kind (integers for
            floating point), not finite, or holds negative variances.
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
            f"{source} holds the weights of a different network than this "
            f"{type(model).__name__}: {'; '.join(problems)}"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source} is damaged: {name} holds values that are not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"{source} is damaged: {name} holds negative variances")
    model.load_state_dict(dict(tensors))
