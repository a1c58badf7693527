"""The read-out on top of the last representation, the same for every network here."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Batch norm, ReLU, spatial average, linear: the only part of an i-RevNet that is lossy.

    This is the released code's order (https://github.com/jhjacobsen/pytorch-i-revnet). The paper's
    text averages before the ReLU (section 3.2, https://arxiv.org/abs/1802.07088).

    Args:
        channels: channels of the representation.
        num_classes: length of the logits.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Representations ``(B, channels, h, w)`` to logits ``(B, num_classes)``."""
        active = functional.relu(self.norm(z))
        _keep_layout(active)
        return self.linear(active.mean(dim=(2, 3)))


def _keep_layout(x: Tensor) -> None:
    """Gives the gradient of ``x`` the memory layout of ``x``.

    The gradient of a mean over channels-last values is laid out with channels first, and the rest
    of the backward pass then takes several times as long on a CPU.
    """
    if (
        not torch.compiler.is_compiling()
        and x.requires_grad
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    ):
        x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
