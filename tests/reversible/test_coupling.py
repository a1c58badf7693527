import pytest
import torch
from torch import nn
from torch.nn import functional

from irevnet.reversible.coupling import CouplingBlock


class Cosine(nn.Module):
    """Any function will do for F: this one is far from invertible."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.cos(3 * functional.pixel_unshuffle(x, self.stride)) ** 2


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_equations(stride):
    residual = Cosine(stride)
    x_tilde, x = torch.rand(2, 2, 3, 6, 12, dtype=torch.float64)
    y_tilde, y = CouplingBlock(residual, stride)(x_tilde, x)
    assert torch.equal(y_tilde, functional.pixel_unshuffle(x, stride))
    assert torch.equal(y, functional.pixel_unshuffle(x_tilde, stride) + residual(x))


def test_one_value_by_hand():
    block = CouplingBlock(nn.Hardtanh(0, 2))
    y_tilde, y = block(torch.full((1, 1, 1, 1), 5.0), torch.full((1, 1, 1, 1), 7.0))
    assert (y_tilde.item(), y.item()) == (7.0, 5.0 + 2.0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_inverse_undoes_forward_and_forward_undoes_inverse(stride):
    block = CouplingBlock(Cosine(stride), stride)
    halves = torch.rand(2, 2, 3, 6, 12, dtype=torch.float64)
    for actual, expected in zip(block.inverse(*block(*halves)), halves, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    halves = torch.rand(2, 2, 3 * stride**2, 2, 4, dtype=torch.float64)
    for actual, expected in zip(block(*block.inverse(*halves)), halves, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
