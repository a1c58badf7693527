"""F as the forward pass evaluated it, so that it can be evaluated a second time.

The reversible backward recovers activations by evaluating every F again. Its gradients are right
only if F is the same function both times, whatever happens to the network in between: another
forward pass, ``train()`` or ``eval()``, an optimizer step, or parameters that
:func:`torch.func.functional_call` replaces for one call.
"""

import functools
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from irevnet.reversible.batch_norm import frozen_statistics

__all__ = ["Snapshot"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Weight norm, spectral norm and pruning compute an attribute from parameters with these suffixes.
_SUFFIXES = ("_g", "_orig")
# Most attributes of a module have one of these types and can skip the slower checks.
_PLAIN = {type(None), bool, int, float, str, tuple, list, dict, set, OrderedDict}


class Snapshot:
    """A copy of F that shares F's tensors, but not the modules that hold them.

    The copy keeps the parameters, buffers, hooks and mode that F had. In training mode it has no
    running statistics of normalisation layers, so that evaluating it updates none and does not
    affect another thread that uses F at the same time. Buffers that F updates when it is evaluated
    (spectral norm) keep their earlier values in the copy.

    Modules that cannot be copied, because they are compiled or have an instance attribute
    ``forward``, are evaluated in place.

    Args:
        residual: F, or a block with its F, before it is evaluated.

    Raises:
        RuntimeError: if F is sharded over processes (FSDP), because its modules then do not hold
            the tensors that it computes with; if an attribute holds a module, or a method of a
            module, that is not one of F's submodules.

    Attributes:
        is_in_place: whether F is evaluated in place.

    Example:
        >>> import torch
        >>> residual = torch.nn.BatchNorm1d(3)
        >>> snapshot = Snapshot(residual)
        >>> _ = residual.eval()
        >>> with snapshot.function() as function:
        ...     function.training
        True
    """

    def __init__(self, residual: nn.Module) -> None:
        self._residual = residual
        self._tensors: list[_Recorded] = []
        # Buffers that F may update: the copy's buffers, its own tensor in them, and F's tensor.
        self._own_buffers: list[tuple[dict[str, Tensor | None], Tensor, _Recorded]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        # Names of tensors that require gradients but are not parameters.
        self._captured: list[str] = []
        # Attributes that refer to a module: the copy's attributes, the name and the value.
        self._references: list[tuple[dict[str, Any], str, Any]] = []
        self.is_in_place = False
        self._copies: dict[int, nn.Module] = {}
        self._copy = self._copied(residual)
        for own, name, value in self._references:
            is_method = isinstance(value, types.MethodType)
            copy = self._copies.get(id(value.__self__ if is_method else value))
            if copy is None:
                raise RuntimeError(
                    f"the attribute {name} of F refers to a module that is not one of its "
                    "submodules, so it could not be evaluated again as it was: register it, or use "
                    'backward="stored"'
                )
            own[name] = types.MethodType(value.__func__, copy) if is_method else copy

    def finish(self) -> None:
        """Ends the recording for a backward pass, after F has been evaluated.

        Raises:
            RuntimeError: if the evaluation has changed F in a way that cannot be undone; if a
                buffer or an attribute of F requires a gradient.
        """
        if self._captured:
            raise RuntimeError(
                f"{self._captured[0]} of F requires a gradient but is not a parameter, so it would "
                'get none: make it a parameter, detach it, or use backward="stored"'
            )
        for buffers, _, recorded in self._own_buffers:
            if recorded.is_current() and recorded.holder.get(recorded.name) is recorded.tensor:
                buffers[recorded.name] = recorded.tensor
                self._tensors.append(recorded)
            elif self.is_in_place:
                raise RuntimeError(self._impure(recorded))
        for recorded in self._tensors:
            if not recorded.is_current():
                raise RuntimeError(self._impure(recorded))

    def check(self) -> None:
        """Raises ``RuntimeError`` if a tensor of F was changed in place since it was recorded."""
        for recorded in self._tensors:
            if not recorded.is_current():
                raise RuntimeError(
                    f"{self._path(recorded)} of a block was changed in place after the forward "
                    "pass: call backward() before the optimizer steps, weights are loaded or "
                    'running statistics are updated, or use backward="stored"'
                )

    @contextmanager
    def function(self) -> Iterator[nn.Module]:
        """F as it was, to be called inside the context.

        Raises:
            RuntimeError: if F can only be evaluated in place and is in another mode or has other
                tensors than when it was recorded.
        """
        if not self.is_in_place:
            yield self._copy
            return
        for module, training in self._modes:
            if module.training != training:
                now = "training" if module.training else "evaluation"
                raise RuntimeError(
                    f"a {type(module).__name__} of a compiled block is in {now} mode, but was not "
                    "in the forward pass: call backward() before train() or eval(), or use "
                    'backward="stored"'
                )
        for recorded in self._tensors:
            if recorded.holder.get(recorded.name) is not recorded.tensor:
                raise RuntimeError(
                    f"{self._path(recorded)} of a compiled block is not the tensor of the forward "
                    'pass (torch.func.functional_call?): use backward="stored"'
                )
        with frozen_statistics(self._residual):
            yield self._residual

    def changed_buffers(self) -> list[str]:
        """Names of the buffers that an evaluation of :meth:`function` has changed."""
        return [
            self._path(recorded)
            for buffers, own, recorded in self._own_buffers
            if buffers[recorded.name] is not own
            or own._version > 0
            or (self.is_in_place and not recorded.is_current())
        ]

    def _copied(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        kind: type = type(module)
        if _is_sharded(kind):
            raise RuntimeError(
                "F of a block is sharded on its own, which frees its parameters after the forward "
                'pass: with FSDP shard the whole network at once, or use backward="stored"'
            )
        state = vars(module)
        self.is_in_place |= (
            "forward" in state or state.get("_compiled_call_impl") is not None or _is_script(kind)
        )
        copy: nn.Module = object.__new__(kind)
        own = {**state}  # state.copy() would share its keys with all modules and be slow to change
        self._copies[id(module)] = copy
        self._modes.append((module, module.training))
        parameters, buffers = module._parameters.copy(), module._buffers.copy()
        counting = module.training and issubclass(kind, _NormBase) and module.track_running_stats
        if counting:
            own["track_running_stats"] = False
        for name, parameter in parameters.items():
            if parameter is not None:
                self._tensors.append(_Recorded.of(module._parameters, name, parameter))
        for name, tensor in buffers.items():
            if counting and name in _STATISTICS:
                buffers[name] = None
            elif tensor is not None:
                if tensor.requires_grad:
                    self._captured.append(name)
                recorded = _Recorded.of(module._buffers, name, tensor)
                if module.training:
                    buffers[name] = cloned = tensor.clone()
                    self._own_buffers.append((buffers, cloned, recorded))
                else:
                    self._tensors.append(recorded)
        children = {
            name: None if child is None else self._copied(child)
            for name, child in module._modules.items()
        }
        for name, value in state.items():
            if type(value) in _PLAIN:
                continue
            if isinstance(value, Tensor):
                if value.requires_grad and not any(name + s in parameters for s in _SUFFIXES):
                    self._captured.append(name)
            elif isinstance(value, nn.Module) or (
                isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module)
            ):
                self._references.append((own, name, value))
        own.update({name: state[name].copy() for name in _HOOKS})
        own.update(_parameters=parameters, _buffers=buffers, _modules=children)
        # Thirty times faster than updating the new object's dictionary.
        object.__setattr__(copy, "__dict__", own)
        return copy

    def _impure(self, recorded: "_Recorded") -> str:
        return (
            f"evaluating F changes its {self._path(recorded)}, so F would be a different function "
            'in the backward pass; put that module into evaluation mode, or use backward="stored"'
        )

    def _path(self, recorded: "_Recorded") -> str:
        for prefix, module in self._residual.named_modules():
            if recorded.holder is module._parameters or recorded.holder is module._buffers:
                return f"{prefix}.{recorded.name}" if prefix else recorded.name
        return recorded.name


@functools.cache
def _is_sharded(kind: type) -> bool:
    names = {base.__name__ for base in kind.__mro__}
    return "FSDPModule" in names or "FullyShardedDataParallel" in names


@functools.cache
def _is_script(kind: type) -> bool:
    return issubclass(kind, torch.jit.ScriptModule)


@dataclass(slots=True)
class _Recorded:
    """A tensor of F, the dictionary that holds it, and its version when it was recorded."""

    holder: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int

    @classmethod
    def of(cls, holder: Mapping[str, Tensor | None], name: str, tensor: Tensor) -> "_Recorded":
        if type(tensor).__name__ == "DTensor":
            raise RuntimeError(
                f"{name} of F is a DTensor, sharded over processes: with tensor parallelism, or "
                'FSDP by block, use backward="stored"'
            )
        return cls(holder, name, tensor, _version(tensor))

    def is_current(self) -> bool:
        return _version(self.tensor) == self.version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
