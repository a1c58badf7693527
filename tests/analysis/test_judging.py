import pytest
import torch

from irevnet.analysis import judging
from irevnet.data import TensorImages


class ByBrightness(torch.nn.Module):
    """Assigns an image to class 0, 1 or 2 by the third of [0, 1] that contains its mean pixel."""

    def forward(self, x):
        classes = (3 * x.flatten(1).mean(1)).long().clamp(0, 2)
        return torch.nn.functional.one_hot(classes, 3).double()


def grey(*levels):
    return torch.stack([torch.full((1, 8, 8), level) for level in levels])


def test_noise_has_the_strength_that_was_asked_for():
    images = torch.full((50, 1, 20, 20), 0.5)
    noisy = judging.noisy(images, 0.1, torch.Generator().manual_seed(0))
    assert judging.noise_strength(noisy, images) == pytest.approx(0.1, rel=0.02)
    assert judging.noise_strength(images + 3, images) == pytest.approx(0.5)  # clipped


def test_noisy_copies_keep_their_labels():
    images = TensorImages(torch.full((4, 1, 2, 2), 100, dtype=torch.uint8), torch.arange(4))
    copies = judging.noisy_copies(images, [0.0, 0.5], seed=0)
    assert copies.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.equal(copies.images[:4], images.images)
    assert not torch.equal(copies.images[4:], images.images)


def test_recognised_counts_either_class_over_all_judges():
    class Judge(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.classes = classes

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.tensor(self.classes), 3).double()[: len(x)]

    ends = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 2]])
    judges = [Judge([0, 1, 0, 2]).eval(), Judge([1, 1, 1, 1]).eval()]
    images = torch.rand(4, 1, 2, 2)
    assert judging.recognised(judges, images, ends) == (3 / 4 + 2 / 4) / 2
    judges[1].train()
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        judging.recognised(judges, images, ends)


def test_midpoints_are_compared_with_noisy_images_and_classes_of_other_paths():
    # Two paths, between classes 0 and 2 and within class 1. The first midpoint passes for class 0;
    # the second, 0.6 brighter than the blend of its ends, for class 2.
    ends = grey(0.1, 0.5), grey(0.9, 0.3)
    midpoints = grey(0.1, 1.0)
    classes = torch.tensor([[0, 2], [1, 1]])
    test = grey(0.1, 0.5, 0.9, 0.9), torch.tensor([0, 1, 2, 0])
    noise = torch.Generator().manual_seed(0)
    recognition = judging.judge([ByBrightness().eval()], midpoints, ends, classes, test, noise)
    assert recognition.recognised == 1 / 2
    assert recognition.control == 1 / 2  # the second has a class of the first path
    assert recognition.noise_strength == pytest.approx(((0.4**2 + 0.6**2) / 2) ** 0.5)
    assert recognition.recognised_of_yardstick == recognition.recognised / recognition.yardstick
    assert recognition.as_dict()["control"] == 1 / 2


def test_without_noise_the_yardstick_is_the_accuracy_on_test_images():
    ends = grey(0.2, 0.4), grey(0.4, 0.6)
    blends = (ends[0] + ends[1]) / 2
    test = grey(0.1, 0.5, 0.9, 0.9), torch.tensor([0, 1, 2, 0])
    classes, noise = torch.tensor([[0, 1], [1, 1]]), torch.Generator()
    recognition = judging.judge([ByBrightness().eval()], blends, ends, classes, test, noise)
    assert recognition.yardstick == 3 / 4
    assert recognition.noise_strength == 0
    assert recognition.recognised_of_yardstick == 1 / (3 / 4)


def test_along_a_path_the_class_is_lost_where_the_images_leave_the_blends():
    # One path within class 0, off the blend in the middle alone, where it passes for class 2.
    blends = grey(0.1, 0.1, 0.1)[None]
    paths = grey(0.1, 1.0, 0.1)[None]
    test = grey(*[0.3] * 40), torch.zeros(40, dtype=torch.int64)
    judges, noise = [ByBrightness().eval()], torch.Generator().manual_seed(0)
    seen, yardstick = judging.recognised_along(
        judges, paths, blends, torch.tensor([[0, 0]]), test, noise
    )
    assert seen == [1, 0, 1]
    assert yardstick[::2] == [1, 1], "no noise at the ends"
    assert yardstick[1] < 0.5, "clipped noise of 0.9 makes dark images brighter"
