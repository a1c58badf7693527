import pytest
import torch

from irevnet import create_model
from irevnet.analysis import interpolation


def test_a_blend_is_a_straight_line_with_its_ends():
    start, end = torch.zeros(2, 3), torch.tensor([[4.0, 8.0, 12.0], [1.0, 1.0, 1.0]])
    line = interpolation.blend(start, end, 5)
    assert line.shape == (2, 5, 3)
    assert line[0, :, 1].tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(line[:, 0], start)
    assert torch.equal(line[:, -1], end)


def test_a_path_begins_and_ends_at_its_images():
    torch.manual_seed(0)
    model = create_model("irevnet_digits").eval()
    start, end = torch.rand(2, 3, 1, 8, 8).unbind(0)
    path = interpolation.interpolate(model, start, end, 4)
    assert path.shape == (3, 4, 1, 8, 8)
    torch.testing.assert_close(path[:, 0], start, atol=1e-5, rtol=0)
    torch.testing.assert_close(path[:, -1], end, atol=1e-5, rtol=0)


def test_range_excess_is_zero_inside_and_counts_outside():
    images = torch.tensor([[0.0, 1.0, 0.5, 0.2], [1.4, -0.2, 0.5, 0.5]])
    assert interpolation.range_excess(images).tolist() == pytest.approx([0.0, 0.15])


def test_nearest_distance_finds_the_nearest():
    references = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    images = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert interpolation.nearest_distance(images, references).tolist() == pytest.approx([0, 1])
