import pytest
import torch
from torch.nn import functional

from irevnet.reversible.layers import SpaceToDepth, ZeroChannels, merge, split


def test_channel_order_of_space_to_depth_by_hand():
    # Two channels of 4x4: a number says channel, row and column of its pixel.
    x = torch.tensor(
        [[[[100 * c + 10 * i + j for j in range(4)] for i in range(4)] for c in range(2)]]
    )
    expected = [
        [[0, 2], [20, 22]],  # channel 0, row 0 and column 0 of each block
        [[1, 3], [21, 23]],  # row 0, column 1
        [[10, 12], [30, 32]],  # row 1, column 0
        [[11, 13], [31, 33]],  # row 1, column 1
        [[100, 102], [120, 122]],  # channel 1
        [[101, 103], [121, 123]],
        [[110, 112], [130, 132]],
        [[111, 113], [131, 133]],
    ]
    assert SpaceToDepth(2)(x).tolist() == [expected]


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.int32])
def test_space_to_depth_is_pixel_unshuffle_and_a_permutation(factor, dtype):
    x = torch.randint(0, 256, (2, 3, 5 * factor, 2 * factor)).to(dtype)
    layer = SpaceToDepth(factor)
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (2, 3 * factor**2, 5, 2)
    assert torch.equal(y, functional.pixel_unshuffle(x, factor))
    assert torch.equal(layer.inverse(y), x)
    assert torch.equal(layer(layer.inverse(y)), y)


def test_space_to_depth_against_plain_loops():
    x = torch.arange(3 * 6 * 9).reshape(1, 3, 6, 9)
    y = SpaceToDepth(3)(x)
    for c in range(3):
        for i in range(3):
            for j in range(3):
                assert torch.equal(y[:, c * 9 + i * 3 + j], x[:, c, i::3, j::3])


@pytest.mark.parametrize("channels", [0, 1, 5])
def test_zero_channels_are_appended_after_the_others(channels):
    x = torch.rand(2, 3, 4, 5) + 1
    layer = ZeroChannels(channels)
    y = layer(x)
    assert y.shape == (2, 3 + channels, 4, 5)
    assert torch.equal(y[:, :3], x)
    assert y[:, 3:].eq(0).all()
    assert torch.equal(layer.inverse(y), x)


def test_split_takes_first_and_last_half_and_merge_undoes_it():
    state = torch.rand(2, 6, 3, 3)
    x_tilde, x = split(state)
    assert torch.equal(x_tilde, state[:, :3])
    assert torch.equal(x, state[:, 3:])
    assert torch.equal(merge(x_tilde, x), state)


def test_repr_shows_the_arguments():
    assert repr(SpaceToDepth(4)) == "SpaceToDepth(factor=4)"
    assert repr(ZeroChannels(13)) == "ZeroChannels(channels=13)"
