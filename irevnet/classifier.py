"""The read-out on top of the last representation, the same for every network here."""

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Batch norm, ReLU, spatial average, linear: the only part of an i-RevNet that loses anything.

    Paper, section 3.2 (https://arxiv.org/abs/1802.07088).

    Args:
        channels: of the representation.
        num_classes: length of the logits.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Representations ``(B, channels, h, w)`` to logits ``(B, num_classes)``."""
        return self.linear(functional.relu(self.norm(z)).mean(dim=(2, 3)))
