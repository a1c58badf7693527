import pytest
import torch
from torch import nn

from irevnet.network.bottleneck import Bottleneck


def kinds(module):
    return [type(layer).__name__ for layer in module]


def test_every_convolution_follows_batch_norm_and_relu():
    assert kinds(Bottleneck(8, 8, 2)) == ["BatchNorm2d", "ReLU", "Conv2d"] * 3


def test_without_preactivation_only_the_first_pair_is_missing():
    assert kinds(Bottleneck(8, 8, 2, preactivation=False)) == [
        "Conv2d",
        *["BatchNorm2d", "ReLU", "Conv2d"] * 2,
    ]


def test_dropout_stands_before_the_last_batch_norm():
    layers = Bottleneck(8, 8, 2, dropout=0.1)
    assert kinds(layers) == [
        *["BatchNorm2d", "ReLU", "Conv2d"] * 2,
        *["Dropout", "BatchNorm2d", "ReLU", "Conv2d"],
    ]
    assert layers[6].p == 0.1


@pytest.mark.parametrize(
    ("stride_on", "strides"),
    [("first", [(2, 2), (1, 1), (1, 1)]), ("middle", [(1, 1), (2, 2), (1, 1)])],
)
def test_convolutions(stride_on, strides):
    layers = Bottleneck(6, 24, 5, stride=2, kernel_sizes=(1, 3, 5), stride_on=stride_on)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [
        (5, 6, 1, 1),
        (5, 5, 3, 3),
        (24, 5, 5, 5),
    ]
    assert [layer.stride for layer in convolutions] == strides
    assert all(layer.bias is None for layer in convolutions)


@pytest.mark.parametrize("kernel_sizes", [(1, 3, 1), (3, 3, 3), (5, 1, 3)])
@pytest.mark.parametrize("stride_on", ["first", "middle"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_output_has_the_size_of_the_downsampled_half(stride, stride_on, kernel_sizes):
    layers = Bottleneck(
        2, 2 * stride**2, 3, stride=stride, kernel_sizes=kernel_sizes, stride_on=stride_on
    )
    assert layers(torch.rand(2, 2, 6, 12)).shape == (2, 2 * stride**2, 6 // stride, 12 // stride)


def test_stride_on_the_first_1x1_convolution_reads_one_pixel_of_each_block():
    x = torch.rand(1, 2, 8, 8, requires_grad=True)

    def pixels_read(stride_on):
        layers = Bottleneck(2, 8, 3, stride=2, stride_on=stride_on).eval()
        (gradient,) = torch.autograd.grad(layers(x).sum(), x)
        return (gradient != 0).any(dim=1)[0]

    corners = torch.zeros(8, 8, dtype=torch.bool)
    corners[::2, ::2] = True
    assert torch.equal(pixels_read("first") & ~corners, torch.zeros_like(corners))
    assert (pixels_read("middle") & ~corners).any()
