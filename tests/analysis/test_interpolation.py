import pytest
import torch
from torch import nn

from irevnet import create_model
from irevnet.analysis import interpolation
from networks import small_irevnet


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("same_class", [True, False])
def test_pairs_are_of_the_kind_asked_for_and_no_image_is_used_twice(same_class):
    labels = torch.randint(0, 4, (100,), generator=generator(1))
    start, end = interpolation.choose_pairs(labels, 40, generator(), same_class=same_class)
    assert ((labels[start] == labels[end]) == same_class).all()
    assert len(torch.cat([start, end]).unique()) == 80
    again = interpolation.choose_pairs(labels, 40, generator(), same_class=same_class)
    assert torch.equal(torch.stack([start, end]), torch.stack(again))
    other = interpolation.choose_pairs(labels, 40, generator(1), same_class=same_class)
    assert not torch.equal(start, other[0])


def test_every_available_pair_can_be_drawn():
    labels = torch.tensor([0, 0, 1, 1, 1])
    start, end = interpolation.choose_pairs(labels, 2, generator(), same_class=True)
    assert sorted(labels[start].tolist()) == sorted(labels[end].tolist()) == [0, 1]
    with pytest.raises(ValueError, match="at most 2, the pairs found of the same class, got 3"):
        interpolation.choose_pairs(labels, 3, generator(), same_class=True)
    with pytest.raises(ValueError, match="at most 0, the pairs found of different classes, got 1"):
        interpolation.choose_pairs(labels[:2], 1, generator(), same_class=False)


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
    middle = interpolation.interpolate(model, start, end, 5)[:, 2]
    torch.testing.assert_close(interpolation.midpoints(model, start, end), middle)


@pytest.mark.parametrize("name", ["irevnet_cifar", "irevnet_cifar_bijective"])
def test_a_path_of_colour_images_begins_and_ends_at_them(name):
    model = small_irevnet(name)
    start, end = torch.rand(2, 2, *model.in_shape, dtype=torch.float64).unbind(0)
    path = interpolation.interpolate(model, start, end, 3)
    torch.testing.assert_close(path[:, 0], start)
    torch.testing.assert_close(path[:, -1], end)
    seen = interpolation.confidence(model, path, torch.tensor([0, 1]), torch.tensor([2, 1]))
    assert seen.start.shape == seen.end.shape == seen.largest.shape == (2, 3)
    torch.testing.assert_close(seen.start[1], seen.end[1])
    if model.is_bijective:  # a blended representation is that of the image it inverts to
        z = interpolation.blend(model.encode(start), model.encode(end), 3)[:, 1]
        expected = model.classify(z).softmax(dim=1)
        torch.testing.assert_close(seen.largest[:, 1], expected.amax(dim=1))
        torch.testing.assert_close(seen.start[0, 1], expected[0, 0])


def test_confidence_is_that_of_the_given_classes():
    # The images are the logits: probabilities 1/2, 1/3, 1/6 and 1/4, 3/4, 0.
    first, second = [3.0, 2.0, 1.0], [1.0, 3.0, 0.0]
    path = torch.tensor([[first, second], [second, first]]).log().view(2, 2, 3, 1, 1)
    start, end = torch.tensor([0, 2]), torch.tensor([1, 0])
    seen = interpolation.confidence(nn.Flatten().eval(), path, start, end)
    torch.testing.assert_close(seen.start, torch.tensor([[1 / 2, 1 / 4], [0, 1 / 6]]))
    torch.testing.assert_close(seen.end, torch.tensor([[1 / 3, 3 / 4], [1 / 4, 1 / 2]]))
    torch.testing.assert_close(seen.largest, torch.tensor([[1 / 2, 3 / 4], [3 / 4, 1 / 2]]))


def test_training_mode_is_refused():
    model = small_irevnet("irevnet_digits").train()
    x, label = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        interpolation.interpolate(model, x, x, 3)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        interpolation.midpoints(model, x, x)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        interpolation.confidence(model, x[:, None], label, label)


def test_range_excess_is_zero_inside_and_counts_outside():
    images = torch.tensor([[0.0, 1.0, 0.5, 0.2], [1.4, -0.2, 0.5, 0.5]])
    assert interpolation.range_excess(images).tolist() == pytest.approx([0.0, 0.15])


def test_nearest_distance_finds_the_nearest():
    references = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    images = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert interpolation.nearest_distance(images, references).tolist() == pytest.approx([0, 1])


def test_nearest_distance_of_many_images_is_that_of_each():
    images, references = torch.rand(300, 3, 2, 2), torch.rand(5, 3, 2, 2)
    actual = interpolation.nearest_distance(images, references)
    assert actual.shape == (300,)
    one = (images[299] - references).flatten(1).norm(dim=1).min()
    torch.testing.assert_close(actual[299], one)
