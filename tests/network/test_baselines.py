import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import irevnet
from irevnet import ResNet, RevNet
from irevnet.reversible.layers import merge, split
from networks import randomise

NETWORKS = [ResNet, RevNet]
ZOO = ["resnet_cifar", "resnet_digits", "revnet56", "revnet_cifar", "revnet_digits"]


def tiny(network, **overrides):
    """Two stages, the second one downsampling, of two units each."""
    arguments = {
        "in_shape": (3, 8, 8),
        "num_classes": 4,
        "stem": "small",
        "stem_channels": 8,
        "units": (2, 2),
        "strides": (1, 2),
        "channels": (16, 32),
    }
    return network(**{**arguments, **overrides})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("stem", "size", "expected"), [("small", (8, 12), (4, 6)), ("imagenet", (32, 64), (4, 8))]
)
def test_shapes(network, stem, size, expected):
    model = tiny(network, stem=stem).eval()
    x = torch.rand(3, 3, *size)
    z = model.encode(x)
    assert z.shape == (3, 32, *expected)
    assert model.classify(z).shape == (3, 4)
    assert torch.equal(model(x), model.classify(z))


@pytest.mark.parametrize("network", NETWORKS)
def test_odd_sizes_are_accepted(network):
    assert tiny(network).eval()(torch.rand(2, 3, 7, 9)).shape == (2, 4)


@pytest.mark.parametrize("network", NETWORKS)
def test_states_are_those_after_the_stem_and_after_every_unit(network):
    model = tiny(network).eval()
    x = torch.rand(2, 3, 8, 8)
    states = list(model.states(x))
    assert [state.shape[1:] for state in states] == [
        (8, 8, 8),
        (16, 8, 8),
        (16, 8, 8),
        (32, 4, 4),
        (32, 4, 4),
    ]
    assert torch.equal(states[0], model.stem(x))
    for before, unit, after in zip(states[:-1], model.units, states[1:], strict=True):
        actual = unit(before) if network is ResNet else merge(*unit(*split(before)))
        assert torch.equal(after, actual)
    assert torch.equal(states[-1], model.encode(x))


def test_resnet_units_are_residual():
    model = randomise(tiny(ResNet)).eval()
    changing, plain = model.units[2], model.units[3]
    x = torch.randn(2, 16, 8, 8)
    y = functional.conv2d(x, changing.projection.weight, stride=2) + changing.residual(x)
    torch.testing.assert_close(changing(x), y)
    torch.testing.assert_close(plain(y), y + plain.residual(y))


def test_revnet_units_are_those_of_the_paper():
    model = randomise(tiny(RevNet)).eval()
    changing, plain = model.units[2], model.units[3]
    x1, x2 = torch.randn(2, 2, 8, 8, 8)
    y1 = functional.conv2d(x1, changing.projection_1.weight, stride=2) + changing.residual_f(x2)
    y2 = functional.conv2d(x2, changing.projection_2.weight, stride=2) + changing.residual_g(y1)
    torch.testing.assert_close(changing(x1, x2), (y1, y2))
    z1 = y1 + plain.blocks[0].residual(y2)
    z2 = y2 + plain.blocks[1].residual(z1)
    torch.testing.assert_close(plain(y1, y2), (z1, z2))


def test_revnet_units_within_a_stage_are_invertible_and_the_first_is_not():
    model = randomise(tiny(RevNet, units=(3, 3)).double()).eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    states = list(model.states(x))
    for index, unit in enumerate(model.units):
        assert hasattr(unit, "inverse") == (index % 3 != 0)
        if index % 3:
            actual = merge(*unit.inverse(*split(states[index + 1])))
            torch.testing.assert_close(actual, states[index], rtol=0, atol=1e-10)
    assert not hasattr(model, "inverse")


@pytest.mark.parametrize("training", [False, True])
def test_reversible_backward_of_a_revnet_gives_the_gradients_of_the_stored_one(training):
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    stored = randomise(tiny(RevNet, units=(3, 4)).double()).train(training)
    reversible = tiny(RevNet, units=(3, 4), backward="reversible").double().train(training)
    reversible.load_state_dict(stored.state_dict())
    for model in (stored, reversible):
        functional.cross_entropy(model(x), torch.arange(4)).backward()
    for (name, actual), expected in zip(
        reversible.named_parameters(), stored.parameters(), strict=True
    ):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=1e-10, msg=name)
    for actual, expected in zip(reversible.buffers(), stored.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("network", "backward", "allowed"),
    [
        (ResNet, "reversible", "('stored',)"),
        (RevNet, "magic", "('stored', 'reversible', 'balanced')"),
        (RevNet, None, "('stored', 'reversible', 'balanced')"),
    ],
)
def test_an_unknown_backward_is_refused(network, backward, allowed):
    message = f"backward must be one of {allowed}, got {backward!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(network, backward=backward)
    model = tiny(network)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.backward = backward
    assert model.backward == "stored"


def test_bottlenecks_are_a_quarter_of_a_unit_or_of_a_half():
    def widths(bottleneck):
        return [layer.out_channels for layer in bottleneck if isinstance(layer, nn.Conv2d)]

    assert widths(tiny(ResNet).units[3].residual) == [8, 8, 32]
    assert widths(tiny(RevNet).units[3].blocks[0].residual) == [4, 4, 16]
    assert widths(tiny(RevNet).units[2].residual_g) == [4, 4, 16]


@pytest.mark.parametrize("network", NETWORKS)
def test_stem_ends_in_batch_norm_and_relu_so_the_first_residual_has_none(network):
    model = tiny(network, stem="imagenet")
    kinds = [type(layer) for layer in model.stem]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    first, second = (next(model.units[index].modules()) for index in (0, 2))
    name = "residual" if network is ResNet else "residual_f"
    assert isinstance(getattr(first, name)[0], nn.Conv2d)
    assert isinstance(getattr(second, name)[0], nn.BatchNorm2d)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_reach_every_parameter(network):
    model = tiny(network).double()
    x = torch.rand(8, 3, 8, 8, dtype=torch.float64)
    functional.cross_entropy(model(x), torch.arange(8) % 4).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("network", NETWORKS)
def test_state_dict_round_trip_and_repr(network):
    model, other = (randomise(tiny(network)).eval() for _ in range(2))
    x = torch.rand(2, 3, 8, 8)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    assert repr(model) == repr(other)
    assert repr(model).startswith(f"{network.__name__}(\n  (stem): Sequential(\n")


@pytest.mark.parametrize("name", ZOO)
def test_every_baseline_of_the_zoo_classifies_its_images(name):
    with torch.device("meta"):
        model = irevnet.create_model(name)
        logits = model(torch.rand(2, *model.in_shape))
    assert logits.shape == (2, model.num_classes)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"num_classes": "4"}, "num_classes must be a positive integer, got '4'"),
        ({"in_shape": None}, "in_shape must be (channels, height, width), got None"),
        ({"in_shape": 8}, "in_shape must be (channels, height, width), got 8"),
        ({"in_shape": (3, 8)}, "in_shape must be (channels, height, width), got (3, 8)"),
        ({"in_shape": (3, 8.0, 8)}, "in_shape height must be a positive integer, got 8.0"),
        ({"stem": "large"}, 'stem must be "imagenet" or "small", got \'large\''),
        ({"stem": None}, 'stem must be "imagenet" or "small", got None'),
        ({"stem_channels": 0}, "stem_channels must be a positive integer, got 0"),
        ({"stem_channels": -8}, "stem_channels must be a positive integer, got -8"),
        ({"stem_channels": 16.0}, "stem_channels must be a positive integer, got 16.0"),
        ({"stem_channels": "16"}, "stem_channels must be a positive integer, got '16'"),
        ({"stem_channels": None}, "stem_channels must be a positive integer, got None"),
        (
            {"stem_channels": 12},
            "stem_channels must be a multiple of 8 (two halves, bottlenecks of a quarter), got 12",
        ),
        (
            {"channels": (16, 36)},
            "channels[1] must be a multiple of 8 (two halves, bottlenecks of a quarter), got 36",
        ),
        ({"channels": 16}, "channels must be a sequence of one positive integer per stage, got 16"),
        ({"channels": (16,)}, "channels must have one entry per stage (2), got 1: (16,)"),
        ({"channels": (16, 0)}, "channels[1] must be a positive integer, got 0"),
        ({"units": 2}, "units must be a sequence of one positive integer per stage, got 2"),
        ({"units": None}, "units must be a sequence of one positive integer per stage, got None"),
        ({"units": ()}, "units must be a sequence of one positive integer per stage, got ()"),
        ({"units": (2, 0)}, "units[1] must be a positive integer, got 0"),
        ({"strides": 1}, "strides must be a sequence of one positive integer per stage, got 1"),
        ({"strides": (1, 2, 2)}, "strides must have one entry per stage (2), got 3: (1, 2, 2)"),
        ({"strides": (1, 2.0)}, "strides[1] must be a positive integer, got 2.0"),
    ],
)
def test_invalid_arguments_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(network, **arguments)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["forward", "encode", "states"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(3, 8, 8), "x must have shape (B, 3, H, W), none of them 0; got (3, 8, 8)"),
        (torch.rand(1, 1, 8, 8), "none of them 0; got (1, 1, 8, 8)"),
        (torch.rand(1, 3, 0, 8), "none of them 0; got (1, 3, 0, 8)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "x must be floating point (images scaled to"),
        ([[1.0]], "x must be a tensor of shape (B, 3, H, W), none of them 0; got list"),
    ],
)
def test_invalid_images_are_refused(network, method, x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(getattr(tiny(network), method)(x))
