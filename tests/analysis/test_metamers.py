import math
import re

import pytest
import torch

from irevnet import IRevNet, create_model
from irevnet.analysis import metamers, pixel_metamers
from networks import IREVNETS, images, small_irevnet

# Each function of representations, and the name of its second one.
FUNCTIONS = {
    "active": (metamers.active, None),
    "invisible": (metamers.invisible, "direction"),
    "invisible_dimensions": (metamers.invisible_dimensions, None),
    "largest_step": (metamers.largest_step, "direction"),
    "towards": (metamers.towards, "target"),
    "same_logits": (metamers.same_logits, "target"),
    "unseen": (metamers.unseen, None),
    "walk": (lambda *arguments: metamers.walk(*arguments, 3), "direction"),
}


def read_out(weight, *, scale=1.0, shift=0.0, size=1):
    """A network to test its read-out alone, with ``y = scale * z + shift`` per channel."""
    weight = torch.tensor(weight, dtype=torch.float64)
    classes, channels = weight.shape
    model = IRevNet(
        in_shape=(channels, size, size),
        num_classes=classes,
        entry_factor=1,
        blocks=(1,),
        strides=(1,),
        half_channels=(channels // 2,),
        bottleneck_channels=(1,),
    )
    model = model.double().eval()
    norm, linear = model.classifier.norm, model.classifier.linear
    with torch.no_grad():
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.copy_(torch.as_tensor(scale))
        norm.bias.copy_(torch.as_tensor(shift))
        linear.weight.copy_(weight)
    return model


def column(*values):
    """One representation of one position, ``(1, channels, 1, 1)`` float64."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def some(name="irevnet_cifar_bijective", batch_size=3):
    """A small network, representations of images wider than high, and as many others."""
    model = small_irevnet(name)
    with torch.no_grad():
        z, target = model.encode(images(model, 2 * batch_size, wider=2)).chunk(2)
    return model, z, target


def distance(first, second):
    return (first - second).flatten(1).norm(dim=1)


@torch.no_grad()
def assert_same_logits(model, z, other, tolerance=1e-11):
    logits = model.classify(z)
    assert (model.classify(other) - logits).abs().max() <= tolerance * logits.abs().max()


class TestKnownReadOut:
    def test_active_entries_are_those_above_their_kink(self):
        model = read_out([[1.0] * 4], scale=[1.0, -2.0, 1.0, 0.0], shift=[0.0, 2.0, -1.0, 3.0])
        assert metamers.active(model, column(0.5, 0.5, 0.5, 0.5)).flatten().tolist() == [
            True, True, False, True,
        ]  # fmt: skip
        assert metamers.active(model, column(0.0, 1.5, 1.5, -9.0)).flatten().tolist() == [
            False, False, True, True,
        ]  # fmt: skip

    def test_what_is_invisible_has_no_active_part_along_the_weights(self):
        # The last entry is inactive, so its direction stays; (3, 4, 0) is what is seen.
        model = read_out([[3.0, 4.0, 0.0, 5.0]])
        z = column(1.0, 1.0, 1.0, -1.0)
        result = metamers.invisible(model, z, column(3.0, 4.0, 2.0, 7.0))
        torch.testing.assert_close(result, column(0.0, 0.0, 2.0, 7.0))
        result = metamers.invisible(model, z, column(4.0, -3.0, 2.0, 7.0))
        torch.testing.assert_close(result, column(4.0, -3.0, 2.0, 7.0))

    def test_the_weights_are_seen_times_batch_norms_scale(self):
        model = read_out([[1.0, 1.0]], scale=[1.0, 2.0], shift=5.0)
        result = metamers.invisible(model, column(0.0, 0.0), column(5.0, 0.0))
        torch.testing.assert_close(result, column(4.0, -2.0))

    def test_positions_of_a_channel_are_averaged(self):
        model = read_out([[1.0, 0.0]], size=2)
        z = torch.tensor([[[[1.0, 1.0], [1.0, -1.0]], [[1.0] * 2] * 2]], dtype=torch.float64)
        direction = torch.zeros_like(z)
        direction[0, 0] = torch.tensor([[3.0, 0.0], [0.0, 6.0]])
        result = metamers.invisible(model, z, direction)
        expected = torch.tensor([[2.0, -1.0], [-1.0, 6.0]], dtype=torch.float64)
        torch.testing.assert_close(result[0, 0], expected)
        assert not result[0, 1].any()

    def test_dimensions_are_those_that_the_rank_of_the_active_part_leaves(self):
        model = read_out([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
        z = torch.cat(
            [
                column(1.0, 1.0, 1.0, 1.0),  # the third class is the sum of the others: rank 2
                column(-1.0, 1.0, 1.0, 1.0),
                column(-1.0, -1.0, -1.0, 1.0),
                column(-1.0, -1.0, -1.0, -1.0),
            ]
        )
        assert metamers.invisible_dimensions(model, z).tolist() == [2, 3, 4, 4]
        assert (metamers.invisible(model, z, torch.ones_like(z))[2:] == 1).all()

    def test_the_largest_step_is_the_first_kink(self):
        # y = z - 1, active above 1, and y = 2 - 2z, active below 1
        model = read_out([[1.0, 1.0]], scale=[1.0, -2.0], shift=[-1.0, 2.0])
        z = torch.cat([column(4.0, -1.0)] * 5 + [column(1.0, 1.0)] * 2)
        directions = [(-1.0, 0.0), (-1.0, 4.0), (1.0, -1.0), (0.0, 0.5), (0.0, 0.0)]
        directions += [(1.0, 0.0), (-1.0, 1.0)]  # from the kinks, which count as inactive
        steps = metamers.largest_step(model, z, torch.cat([column(*d) for d in directions]))
        assert steps.tolist() == [3.0, 0.5, math.inf, 4.0, math.inf, 0.0, math.inf]

    def test_the_nearest_point_stops_at_the_kinks(self):
        # Seen: the sum of the first two. (-5, 4) is nearest to the line at (-3, 6), below a kink.
        model = read_out([[1.0, 1.0, 0.0, 0.0]])
        z = column(1.0, 2.0, 1.0, -1.0)
        result = metamers.towards(model, z, column(-5.0, 4.0, -2.0, 2.0))
        torch.testing.assert_close(result, column(0.0, 3.0, 0.0, 0.0))
        result = metamers.towards(model, z, column(2.0, 2.0, 9.0, -9.0))
        torch.testing.assert_close(result, column(1.5, 1.5, 9.0, -9.0))

    def test_a_walk_slides_along_the_kinks(self):
        model = read_out([[1.0, 1.0, 0.0, 0.0]])
        way = metamers.walk(model, column(1.0, 2.0, 1.0, 1.0), column(-4.0, 4.0, 4.0, -2.0), 5)
        assert way.shape == (1, 5, 4, 1, 1)
        expected = [[1, 2, 1, 1], [0, 3, 2, 0.5], [0, 3, 3, 0], [0, 3, 4, 0], [0, 3, 5, 0]]
        torch.testing.assert_close(way.flatten(), torch.tensor(expected).double().flatten())

    def test_another_region_is_entered_where_the_logits_need_it(self):
        # No entry of the target carries the sum of 2. Raising -3 to it is a smaller change than -6.
        model = read_out([[1.0, 1.0, 0.0, 0.0]])
        z, target = column(2.0, -1.0, 1.0, 1.0), column(-6.0, -3.0, -4.0, 7.0)
        result = metamers.same_logits(model, z, target)
        torch.testing.assert_close(result, column(-6.0, 2.0, -4.0, 7.0))
        # Within the region of z only the first entry can carry it.
        near = metamers.towards(model, z, target)
        torch.testing.assert_close(near, column(2.0, -3.0, 0.0, 7.0))

    def test_what_is_unseen_is_negative_or_no_combination_of_the_weights(self):
        # The mean of the ReLU is (2, 1), of which (1.5, 1.5) is along the weights.
        model = read_out([[1.0, 1.0]], size=2)
        z = torch.tensor([[[4.0, 4.0], [-2.0, 0.0]], [[1.0] * 2] * 2]).double()[None]
        expected = z - 1.5
        torch.testing.assert_close(metamers.unseen(model, z), expected)

    def test_channels_without_scale_do_not_matter(self):
        model = read_out([[1.0, 1.0, 5.0, 5.0]], scale=[1.0, 1.0, 0.0, 0.0], shift=[0, 0, 3.0, 0])
        z, target = column(2.0, 1.0, 1.0, 1.0), column(4.0, 1.0, 70.0, -70.0)
        for function in (metamers.towards, metamers.same_logits):
            torch.testing.assert_close(function(model, z, target), column(3.0, 0.0, 70.0, -70.0))
        assert metamers.largest_step(model, z, column(0.0, 0.0, 1.0, -1.0)).tolist() == [math.inf]


@pytest.mark.parametrize("name", IREVNETS)
class TestNetworks:
    def test_the_logits_do_not_see_what_is_invisible(self, name):
        model, z, target = some(name)
        direction = metamers.invisible(model, z, target - z)
        assert direction.abs().max() > 0.1
        step = metamers.largest_step(model, z, direction)[:, None, None, None]
        assert (step > 0).all()
        assert_same_logits(model, z, z + step * direction)
        # Beyond its kink an entry counts differently.
        with torch.no_grad():
            beyond = model.classify(z + 100 * direction) - model.classify(z)
        assert (beyond.abs().amax(dim=1) > 1e-6).all()
        torch.testing.assert_close(metamers.invisible(model, z, direction), direction)

    def test_the_removed_part_is_seen_by_the_logits(self, name):
        model, z, target = some(name)
        direction = metamers.invisible(model, z, target - z)
        left_out = (target - z) - direction
        assert not left_out[~metamers.active(model, z)].any()
        torch.testing.assert_close(
            (left_out * direction).flatten(1).sum(dim=1), z.new_zeros(len(z)), atol=1e-9, rtol=0
        )
        seen = z[0].numel() - metamers.invisible_dimensions(model, z)
        assert seen.tolist() == [5] * len(z)

    @pytest.mark.parametrize("function", [metamers.towards, metamers.same_logits])
    def test_images_with_the_same_logits(self, name, function):
        model, z, target = some(name)
        result = function(model, z, target)
        assert_same_logits(model, z, result)
        assert (distance(result, target) < distance(z, target)).all()
        if model.is_bijective:
            with torch.no_grad():
                other, own = model.inverse(result), model.inverse(z)
                assert pixel_metamers.logit_difference(model, other, model(own)).max() < 1e-9
            assert (distance(other, own) > 0.1).all()

    def test_logits_and_what_they_do_not_see_are_everything(self, name):
        model, z, _ = some(name)
        norm, linear = model.classifier.norm, model.classifier.linear
        with torch.no_grad():
            logits = model.classify(z)
            seen = (logits - linear.bias) @ torch.linalg.pinv(linear.weight).T
            torch.testing.assert_close(
                metamers.unseen(model, z) + seen[:, :, None, None], norm(z), atol=1e-9, rtol=0
            )

    def test_a_target_equal_to_z_changes_nothing(self, name):
        model, z, _ = some(name)
        for function in (metamers.towards, metamers.same_logits):
            torch.testing.assert_close(function(model, z, z), z, atol=1e-12, rtol=0)


def test_no_other_point_is_nearer_than_the_nearest():
    model, z, target = some()
    result = metamers.towards(model, z, target)
    for _ in range(20):
        other = metamers.towards(model, z, z + 3 * torch.randn_like(z))
        # The set is convex: no other point lies towards the target, seen from the nearest.
        inner = ((target - result) * (other - result)).flatten(1).sum(dim=1)
        assert (inner <= 1e-9 * distance(target, result) * distance(other, result)).all()


def test_same_logits_is_never_farther_than_the_nearest_point_of_the_own_region():
    model, z, target = some(batch_size=20)
    own = distance(metamers.towards(model, z, target), target)
    result = metamers.same_logits(model, z, target)
    assert (distance(result, target) <= own).all()
    assert (distance(result, target) < 0.99 * own).any()
    # Within its own region, no point is nearer.
    torch.testing.assert_close(metamers.towards(model, result, target), result)


def test_a_walk_begins_in_the_invisible_direction_and_ends_at_the_nearest_point():
    model, z, target = some()
    direction = target - z
    way = metamers.walk(model, z, direction, 4)
    torch.testing.assert_close(way[:, 0], z)
    torch.testing.assert_close(way[:, -1], metamers.towards(model, z, target))
    for step in range(4):
        assert_same_logits(model, z, way[:, step])
    straight = metamers.invisible(model, z, direction)
    short = 0.99 * metamers.largest_step(model, z, straight)[:, None, None, None]
    torch.testing.assert_close(
        metamers.walk(model, z, short * direction, 2)[:, 1], z + short * straight
    )


def test_representations_keep_their_dtype_and_logits_their_single_precision():
    model = create_model("irevnet_digits_bijective", pretrained="digits")
    x = torch.rand(2, 8, 1, 8, 8)
    with torch.no_grad():
        z, target = (model.encode(part) for part in x)
        result = metamers.same_logits(model, z, target)
        assert result.dtype == metamers.invisible(model, z, target).dtype == torch.float32
        assert metamers.walk(model, z, target, 2).dtype == torch.float32
        difference = pixel_metamers.logit_difference(model, model.inverse(result), model(x[0]))
    assert difference.dtype == torch.float64
    assert difference.max() < 1e-5


class TestErrors:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_invalid_arguments_are_refused(self, name):
        function, second = FUNCTIONS[name]
        model = read_out([[1.0] * 4])
        z = torch.rand(2, 4, 1, 1)

        def refuse(message, z, other=None):
            with pytest.raises(ValueError, match=re.escape(message)):
                function(model, z) if second is None else function(model, z, other)

        shape = "z must be a representation of shape (B, 4, h, w), none of them 0, got "
        refuse(shape + "(2, 4, 1)", z[..., 0], z[..., 0])
        refuse(shape + "(2, 2, 1, 1)", z[:, :2], z[:, :2])
        refuse(shape + "(0, 4, 1, 1)", z[:0], z[:0])
        refuse("z must be floating point, got dtype torch.int32", z.int(), z)
        refuse("z must be finite", z / 0, z)
        if second is not None:
            other = f"{second} must have the shape of z, (2, 4, 1, 1), got (1, 4, 1, 1)"
            refuse(other, z, z[:1])
            refuse(f"{second} must be floating point, got dtype torch.int64", z, z.long())
            refuse(f"{second} must be finite", z, z * math.nan)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_training_mode_is_refused(self, name):
        model = read_out([[1.0] * 4]).train()
        z = torch.rand(2, 4, 1, 1, dtype=torch.float64)
        function, second = FUNCTIONS[name]
        with pytest.raises(ValueError, match=r"model must be in evaluation mode.*model\.eval"):
            function(model, z) if second is None else function(model, z, z)
