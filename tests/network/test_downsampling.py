"""Networks that differ in their downsampling alone."""

import pytest
import torch
from torch import nn

import irevnet
from irevnet.network.downsampling import ProjectedIRevNet, ShuffledRevNet

SMALL = {"in_shape": (3, 8, 8), "blocks": (1, 2, 1), "half_channels": (4, 16, 64)}


def projected(**overrides):
    arguments = {**SMALL, "strides": (1, 2, 2), "entry_factor": 1, "num_classes": 5}
    return ProjectedIRevNet(**{**arguments, "bottleneck_channels": (4, 4, 4), **overrides})


def test_projections_stand_where_s_changes_the_shape_and_nowhere_else():
    model = projected()
    twin = irevnet.IRevNet(
        **SMALL, strides=(1, 2, 2), entry_factor=1, num_classes=5, bottleneck_channels=(4, 4, 4)
    )
    extra = {name for name, _ in model.named_parameters()} - {
        name for name, _ in twin.named_parameters()
    }
    assert extra == {
        f"blocks.{block}.{name}.weight"
        for block in (1, 3)
        for name in ("projection", "projection_tilde")
    }
    shapes = [tuple(state.shape[1:]) for state in model.states(torch.rand(1, 3, 8, 8))]
    assert shapes == [tuple(state.shape[1:]) for state in twin.states(torch.rand(1, 3, 8, 8))]


def test_with_projections_that_pick_pixels_as_s_does_it_is_the_i_revnet():
    """S is a strided convolution whose kernel covers its stride; a 1x1 one sees a pixel in four."""
    model = projected().eval()
    with torch.no_grad():
        for block in model.blocks:
            if hasattr(block, "projection"):
                for layer in (block.projection, block.projection_tilde):
                    nn.init.zeros_(layer.weight)
                    for channel in range(layer.in_channels):
                        layer.weight[4 * channel, channel] = 1
            block.residual[-1].weight.zero_()
        z = model.encode(torch.arange(192.0).reshape(1, 3, 8, 8))
        twin = irevnet.IRevNet(
            **SMALL, strides=(1, 2, 2), entry_factor=1, num_classes=5, bottleneck_channels=(4, 4, 4)
        ).eval()
        for block in twin.blocks:
            block.residual[-1].weight.zero_()
        expected = twin.encode(torch.arange(192.0).reshape(1, 3, 8, 8))
    picked = z != 0
    assert picked.any()
    assert torch.equal(z[picked], expected[picked])


def test_projections_have_no_inverse_and_no_reversible_backward():
    model = projected()
    z = model.encode(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="has no inverse: its projections discard information"):
        model.inverse(z)
    for training in (True, False):
        with pytest.raises(ValueError, match="has no inverse: its projections discard information"):
            next(model.train(training).inverse_states(z))
    with pytest.raises(ValueError, match=r"backward must be one of \('stored',\), got"):
        projected(backward="reversible")
    with pytest.raises(ValueError, match=r"streams must be one of \('float',\), got 'fixed'"):
        projected(streams="fixed")
    with pytest.raises(ValueError, match=r"backward must be one of \('stored',\), got 'reversible"):
        model.backward = "reversible"
    with pytest.raises(ValueError, match=r"streams must be one of \('float',\), got 'fixed'"):
        model.streams = "fixed"
    assert (model.backward, model.streams) == ("stored", "float")


def test_projections_are_not_bijective_in_a_layout_in_which_s_is():
    layout = {"in_shape": (1, 4, 4), "entry_factor": 2, "half_channels": (2, 8), "blocks": (1, 1)}
    layout |= {"strides": (1, 2), "bottleneck_channels": (3, 3)}
    assert irevnet.IRevNet(**layout).is_bijective
    assert not ProjectedIRevNet(**layout).is_bijective


@pytest.mark.parametrize(
    "name", ["projected_irevnet_cifar", "projected_irevnet_digits", "shuffled_revnet_cifar"]
)
def test_every_parameter_has_a_gradient(name):
    model = irevnet.create_model(name)
    model(torch.rand(2, *model.in_shape)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_a_revnet_with_s_loses_nothing_between_its_stages():
    model = ShuffledRevNet(
        in_shape=(3, 8, 8), num_classes=5, stem="small", stem_channels=8, units=(1, 1),
        strides=(1, 2), channels=(8, 32),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "Bottleneck":
                module[-1].weight.zero_()
        first, *_, last = model.states(torch.rand(2, 3, 8, 8))
    assert torch.equal(first.flatten(1).sort(1).values, last.flatten(1).sort(1).values)


def test_channels_that_s_cannot_give_are_named():
    with pytest.raises(ValueError, match=r"square of the stride, from 8 to 32, .* got 16"):
        ShuffledRevNet(
            in_shape=(3, 8, 8), stem="small", stem_channels=8, units=(1, 1), strides=(1, 2),
            channels=(8, 16),
        )  # fmt: skip


class TestZerosBeforeTheImage:
    def network(self, **overrides):
        torch.manual_seed(0)
        arguments = {"blocks": (2, 1, 1), "bottleneck_channels": (8, 8, 8), "zeros": "before"}
        return irevnet.create_model("irevnet_digits", **arguments, **overrides).double()

    def test_the_first_f_reads_the_image(self):
        model = self.network()
        model(torch.rand(2, 1, 8, 8).double()).square().sum().backward()
        assert model.blocks[0].residual[0].weight.grad.abs().max() > 0
        after = irevnet.create_model("irevnet_digits", half_channels=(16, 64, 256)).double()
        after(torch.rand(2, 1, 8, 8).double()).square().sum().backward()
        assert after.blocks[0].residual[0].weight.grad.abs().max() == 0

    @pytest.mark.parametrize("streams", ["float", "fixed"])
    def test_images_come_back(self, streams):
        model = self.network(streams=streams).eval()
        x = torch.randint(0, 256, (4, 1, 8, 8)).double() / 255
        with torch.no_grad():
            assert torch.allclose(model.inverse(model.encode(x)), x, atol=2**-17)

    @pytest.mark.parametrize("streams", ["float", "fixed"])
    def test_gradients_are_those_of_stored_activations(self, streams):
        x, gradients = torch.rand(4, 1, 8, 8).double(), []
        for backward in ("stored", "reversible", "balanced"):
            model = self.network(streams=streams, backward=backward)
            model(x).square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        for other in gradients[1:]:
            torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-8)

    def test_another_place_is_refused(self):
        with pytest.raises(ValueError, match='zeros must be "after" or "before", got \'front\''):
            irevnet.create_model("irevnet_digits", zeros="front")
