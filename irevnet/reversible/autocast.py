"""The autocast state of the forward pass, for the backward pass."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Autocast"]


@dataclass(frozen=True)
class Autocast:
    """The autocast state of the forward pass, to be entered again in the backward pass."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def current(cls, device: torch.device) -> "Autocast":
        """The device's current autocast state."""
        kind = device.type
        if not torch.amp.is_autocast_available(kind):
            return cls(kind, torch.float32, enabled=False)
        return cls(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def entered(self) -> Any:  # noqa: ANN401
        """A context with this autocast state."""
        if not torch.amp.is_autocast_available(self.device):
            return contextlib.nullcontext()
        # The cache of cast weights is off: weights cast while gradients are off would be reused,
        # without their autograd history, when gradients are on.
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)
