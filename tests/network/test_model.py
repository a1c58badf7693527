import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import irevnet
from irevnet import IRevNet
from irevnet.reversible.layers import merge, split
from networks import (
    BIJECTIVE,
    INJECTIVE,
    IREVNETS,
    SMALL,
    images,
    jacobian,
    randomise,
    small_irevnet,
)


def assert_close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def tiny(**overrides):
    """The smallest i-RevNet with two stages: images (1, 4, 4), representations (4, 2, 2)."""
    arguments = {
        "in_shape": (1, 4, 4),
        "num_classes": 3,
        "entry_factor": 1,
        "blocks": (1, 2),
        "strides": (1, 2),
        "half_channels": (1, 4),
        "bottleneck_channels": (3, 5),
    }
    return IRevNet(**{**arguments, **overrides})


class TestInverse:
    """What holds exactly for every i-RevNet of the zoo, and is therefore tested in float64."""

    @pytest.mark.parametrize("name", IREVNETS)
    @pytest.mark.parametrize(("batch_size", "wider"), [(1, 1), (3, 2), (8, 1)])
    def test_images_come_back(self, name, batch_size, wider):
        model = small_irevnet(name)
        x = images(model, batch_size, wider=wider)
        with torch.no_grad():
            assert_close(model.inverse(model.encode(x)), x)

    @pytest.mark.parametrize("name", IREVNETS)
    @pytest.mark.parametrize(("batch_size", "wider"), [(2, 2), (8, 1)])
    def test_images_come_back_in_training_mode(self, name, batch_size, wider):
        model = small_irevnet(name, dropout=0.0).train()
        x = images(model, batch_size, wider=wider)
        with torch.no_grad():
            assert_close(model.inverse(model.encode(x)), x)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", BIJECTIVE)
    def test_bijective_every_representation_comes_back(self, name, training):
        model = small_irevnet(name).train(training)
        with torch.no_grad():
            z = 3 * torch.randn_like(model.encode(images(model, 4)))
            assert_close(model.encode(model.inverse(z)), z)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", INJECTIVE)
    def test_injective_representations_of_images_come_back(self, name, training):
        model = small_irevnet(name, dropout=0.0).train(training)
        with torch.no_grad():
            z = model.encode(images(model, 4))
            assert_close(model.encode(model.inverse(z)), z)

    @pytest.mark.parametrize("name", INJECTIVE)
    def test_injective_any_other_representation_is_projected(self, name):
        model = small_irevnet(name)
        with torch.no_grad():
            z = torch.randn_like(model.encode(images(model)))
            x = model.inverse(z)
            projected = model.encode(x)
            assert (projected - z).abs().max() > 0.1  # z is not the representation of an image
            assert_close(model.inverse(projected), x)

    @pytest.mark.parametrize("name", BIJECTIVE)
    def test_bijective_jacobian_of_the_inverse_is_the_inverse_of_the_jacobian(self, name):
        model = small_irevnet(name).requires_grad_(False)
        x = images(model, 1)
        forward = jacobian(model.encode, x)
        backward = jacobian(model.inverse, model.encode(x))
        assert forward.shape == (x.numel(), x.numel())
        assert_close(backward, torch.linalg.inv(forward))
        sign, log_determinant = torch.linalg.slogdet(forward)
        assert abs(sign) == 1
        assert abs(log_determinant) < 1e-10
        # The network is not a permutation, for which all this would be trivial.
        assert (forward - forward.round()).abs().max() > 0.1

    @pytest.mark.parametrize("name", INJECTIVE)
    def test_injective_jacobian_of_the_inverse_is_a_left_inverse_of_the_jacobian(self, name):
        model = small_irevnet(name).requires_grad_(False)
        x = images(model, 1)
        forward = jacobian(model.encode, x)
        backward = jacobian(model.inverse, model.encode(x))
        assert forward.shape[0] > forward.shape[1] == x.numel()
        assert_close(backward @ forward, torch.eye(x.numel(), dtype=torch.float64))
        assert (forward - forward.round()).abs().max() > 0.05

    def test_all_300_layers_of_irevnet_b(self):
        blocks = (6, 16, 72, 6)
        model = irevnet.create_model("irevnet_b", **{**SMALL["irevnet_b"], "blocks": blocks})
        assert len(model.blocks) * 3 == 300
        model.double()
        x = images(model, 4)
        with torch.no_grad():
            z = model.encode(x)
            assert_close(model.inverse(z), x)
            assert_close(model.encode(model.inverse(z)), z)

    @pytest.mark.parametrize("name", IREVNETS)
    def test_float32_error_is_small_at_initialisation(self, name):
        model = irevnet.create_model(name, **{**SMALL[name], "num_classes": 5}).eval()
        x = images(model, 4, dtype=torch.float32)
        with torch.no_grad():
            assert_close(model.inverse(model.encode(x)), x, atol=2e-6)

    @pytest.mark.parametrize("entry_factor", [1, 2, 3, 4])
    @pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1), (1, 3)])
    @pytest.mark.parametrize("zeros", ["none", "odd", "many"])
    def test_any_entry_and_stride(self, entry_factor, strides, zeros):
        half = math.ceil(entry_factor**2 * 2 / 2) + {"none": 0, "odd": 1, "many": 20}[zeros]
        first = half * strides[0] ** 2
        size = entry_factor * math.prod(strides)
        model = IRevNet(
            in_shape=(2, size, 2 * size),
            num_classes=3,
            entry_factor=entry_factor,
            blocks=(2, 2),
            strides=strides,
            half_channels=(first, first * strides[1] ** 2),
            bottleneck_channels=(3, 3),
            kernel_sizes=(3, 1, 5),
            stride_on="middle",
        )
        randomise(model.double()).eval()
        assert model.is_bijective == (zeros == "none")
        x = images(model, 3)
        with torch.no_grad():
            z = model.encode(x)
            assert z.shape == (3, model.channels, 1, 2)
            assert_close(model.inverse(z), x)

    def test_an_odd_number_of_channels_gets_a_zero_channel(self):
        model = tiny(in_shape=(3, 4, 4), half_channels=(2, 8)).double().eval()
        assert model.zero_channels.channels == 1
        x = images(model)
        with torch.no_grad():
            assert_close(model.inverse(model.encode(x)), x)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
    def test_running_statistics_are_never_updated(self, name, training):
        model = small_irevnet(name)
        z = model.encode(images(model, 4)).detach()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.train(training).inverse(z)
        after = model.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert model.training == training

    def test_encoding_counts_a_batch_once(self):
        model = small_irevnet("irevnet_digits").train()
        model.inverse(model.encode(images(model, 4)))
        counts = {
            int(norm.num_batches_tracked)
            for block in model.blocks
            for norm in block.modules()
            if isinstance(norm, nn.BatchNorm2d)
        }
        assert counts == {1}

    def test_gradients_flow_through_the_inverse(self):
        model = small_irevnet("irevnet_digits_bijective")
        x = images(model).requires_grad_()
        (gradient,) = torch.autograd.grad((model.inverse(model.encode(x)) ** 2).sum(), x)
        assert_close(gradient, 2 * x.detach())


class TestForward:
    @pytest.mark.parametrize("name", IREVNETS)
    def test_logits_are_the_classified_representation(self, name):
        model = small_irevnet(name)
        x = images(model, 3)
        z = model.encode(x)
        logits = model(x)
        assert logits.shape == (3, 5)
        assert torch.equal(logits, model.classify(z))
        classifier = model.classifier
        features = torch.relu(classifier.norm(z)).mean(dim=(2, 3))
        assert_close(logits, features @ classifier.linear.weight.T + classifier.linear.bias)

    @pytest.mark.parametrize("name", IREVNETS)
    def test_states_are_those_after_the_entry_and_after_every_block(self, name):
        model = small_irevnet(name)
        x = images(model)
        states = list(model.states(x))
        assert len(states) == len(model.blocks) + 1
        assert torch.equal(states[0], model.zero_channels(model.entry(x)))
        for before, block, after in zip(states, model.blocks, states[1:], strict=False):
            assert_close(after, merge(*block(*split(before))))
        assert torch.equal(states[-1], model.encode(x))
        channels, height, width = model.in_shape
        if model.is_bijective:
            assert {state[0].numel() for state in states} == {channels * height * width}

    @pytest.mark.parametrize("name", IREVNETS)
    def test_shape_of_the_representation(self, name):
        model = small_irevnet(name)
        _, height, width = model.in_shape
        z = model.encode(images(model, 3, wider=2))
        assert z.shape == (
            3,
            model.channels,
            height // model.total_stride,
            2 * width // model.total_stride,
        )
        assert model.channels == 2 * model.blocks[-1].residual[-1].out_channels

    def test_only_the_first_residual_has_no_preactivation(self):
        model = small_irevnet("irevnet_b")
        assert [type(block.residual[0]) for block in model.blocks] == [nn.Conv2d] + [
            nn.BatchNorm2d
        ] * (len(model.blocks) - 1)

    def test_stages_downsample_in_their_first_block_alone(self):
        model = irevnet.create_model("irevnet_digits", blocks=(2, 3, 1), strides=(2, 1, 2),
                                     half_channels=(32, 32, 128))  # fmt: skip
        assert [block.downsample.factor for block in model.blocks] == [2, 1, 1, 1, 1, 2]

    @pytest.mark.parametrize("streams", ["float", "fixed"])
    @pytest.mark.parametrize("name", ["irevnet_cifar", "irevnet_cifar_bijective"])
    def test_normalisation_is_taken_out_and_put_back(self, name, streams):
        torch.manual_seed(0)
        channels = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
        model = small_irevnet(name, streams=streams, normalization=channels).float()
        plain = small_irevnet(name, streams=streams).float()
        state = model.state_dict()
        plain.load_state_dict({key: state[key] for key in plain.state_dict()})
        x = images(model, dtype=torch.float32).mul(255).round().div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in channels)
        with torch.no_grad():
            z = model.encode(x)
            assert torch.equal(z, plain.encode((x - mean) / std))
            assert_close(model(x), plain((x - mean) / std))
            assert torch.equal(model.inverse(z).mul(255).round().div(255), x)

    @torch.no_grad()
    @pytest.mark.parametrize("fraction_bits", [16, 23, 24])
    @pytest.mark.parametrize("name", ["irevnet_cifar", "irevnet_cifar_bijective"])
    def test_an_exact_inverse_is_verified_whatever_normalisation_rounds(self, name, fraction_bits):
        torch.manual_seed(0)
        model = irevnet.create_model(
            name,
            **SMALL[name],
            dropout=0.0,
            streams="fixed",
            fraction_bits=fraction_bits,
            normalization=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        )
        x = torch.randint(0, 256, (8, *model.in_shape)).float() / 255
        for training in (False, True):
            z = model.train(training).encode(x)
            back = model.inverse(z, verify=True)
            assert torch.equal(back.mul(255).round(), x.mul(255).round())

    @pytest.mark.parametrize(
        "normalization",
        [
            ((0.5,), (0.2,)),
            ((0.5, 0.5, 0.5), (0.2, 0.2, 0.0)),
            ((0.5, 0.5, math.nan), (0.2, 0.2, 0.2)),
            (0.5, 0.2),
            "mean",
        ],
    )
    def test_an_invalid_normalisation_is_refused(self, normalization):
        message = "normalization must be the mean and the positive standard deviation of each of 3"
        with pytest.raises(ValueError, match=message):
            irevnet.create_model("irevnet_cifar", normalization=normalization)

    def test_an_unknown_entry_order_is_refused(self):
        with pytest.raises(ValueError, match='entry_order must be "channel" or "offset", got 1'):
            irevnet.create_model("irevnet_cifar", entry_order=1)

    @pytest.mark.parametrize(("name", "zeros"), [("irevnet_a", 144), ("irevnet_b", 0)])
    def test_zero_channels_of_the_papers_models(self, name, zeros):
        with torch.device("meta"):
            model = irevnet.create_model(name)
        assert model.zero_channels.channels == zeros
        assert model.is_bijective == (zeros == 0)

    @pytest.mark.parametrize("name", ["irevnet_a", "irevnet_b"])
    def test_sizes_of_table_1(self, name):
        with torch.device("meta"):
            model = irevnet.create_model(name)
            z = model.encode(torch.rand(1, 3, 224, 224))
        assert z.shape[2:] == (7, 7)
        assert model.channels == {"irevnet_a": 2 * 6144, "irevnet_b": 2 * 1536}[name]

    def test_bottleneck_widths_are_a_quarter_unless_given(self):
        def widths(**overrides):
            model = irevnet.create_model("irevnet_cifar", blocks=(1, 1, 1), **overrides)
            return [block.residual[0 if i == 0 else 2].out_channels
                    for i, block in enumerate(model.blocks)]  # fmt: skip

        assert widths() == [4, 16, 64]
        assert widths(bottleneck_ratio=2) == [8, 32, 128]
        assert widths(bottleneck_channels=(5, 6, 7)) == [5, 6, 7]

    def test_repr_shows_what_the_network_is_made_of(self):
        text = repr(irevnet.create_model("irevnet_cifar"))
        assert text.startswith("IRevNet(\n  backward=stored, streams=float\n  (entry): SpaceToD")
        assert "(zero_channels): ZeroChannels(channels=29)" in text
        assert "(0): CouplingBlock(\n      (residual): Bottleneck(\n" in text
        assert "Dropout(p=0.1" in text

    def test_integers_may_be_numpys(self):
        one, two, four = (np.int64(n) for n in (1, 2, 4))
        numpys = {"in_shape": (one, four, four), "num_classes": np.int64(3), "strides": (one, two),
                  "blocks": (one, two), "half_channels": (one, four)}  # fmt: skip
        model = tiny(**numpys)
        assert repr(model) == repr(tiny())
        assert model(torch.rand(2, 1, 4, 4)).shape == (2, 3)
        with pytest.raises(
            ValueError, match=r"num_classes must be a positive integer, got np\.True"
        ):
            tiny(num_classes=np.True_)

    def test_sequences_may_be_lists(self):
        lists = {"blocks": [1, 2], "strides": [1, 2], "half_channels": [1, 4],
                 "kernel_sizes": [1, 3, 1], "in_shape": [1, 4, 4],
                 "bottleneck_channels": [3, 5]}  # fmt: skip
        assert repr(tiny(**lists)) == repr(tiny())
        assert tiny(**lists).in_shape == (1, 4, 4)


class TestGradients:
    def gradients(self, model):
        """Gradients by parameter name, of a cross-entropy in training mode with fresh norms."""
        x = images(model, 8)
        loss = nn.functional.cross_entropy(model.train()(x), torch.arange(8) % 5)
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    @pytest.mark.parametrize("name", BIJECTIVE)
    def test_bijective_every_parameter_is_reached(self, name):
        model = irevnet.create_model(name, **{**SMALL[name], "num_classes": 5}).double()
        for parameter, gradient in self.gradients(model).items():
            assert gradient.isfinite().all(), parameter
            assert gradient.any(), parameter

    @pytest.mark.parametrize("name", INJECTIVE)
    def test_injective_every_parameter_but_those_of_the_first_block_is_reached(self, name):
        # At least half of the channels are zeros, so the half that the first F reads contains only
        # zeros. So does the input of each of its convolutions (batch norms have no shift at first,
        # and ReLU(0) = 0). Their gradients are therefore zero. So are the gradients of a batch
        # norm's scale, which multiplies zeros, and of its shift, because ReLU'(0) = 0.
        model = irevnet.create_model(
            name, **{**SMALL[name], "num_classes": 5, "dropout": 0.0}
        ).double()
        _, x = split(next(model.states(images(model))))
        assert not x.any()
        for parameter, gradient in self.gradients(model).items():
            assert gradient.isfinite().all(), parameter
            assert gradient.any() != parameter.startswith("blocks.0."), parameter

    def test_injective_with_fewer_zeros_than_a_half_every_parameter_is_reached(self):
        model = tiny(in_shape=(3, 4, 4), half_channels=(2, 8), num_classes=5).double()
        assert all(gradient.any() for gradient in self.gradients(model).values())


@pytest.mark.parametrize("name", IREVNETS)
def test_state_dict_round_trip(name):
    model = small_irevnet(name)
    other = small_irevnet(name)
    x = images(model)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
            ({"num_classes": -3}, "num_classes must be a positive integer, got -3"),
            ({"num_classes": "10"}, "num_classes must be a positive integer, got '10'"),
            ({"num_classes": 10.0}, "num_classes must be a positive integer, got 10.0"),
            ({"num_classes": None}, "num_classes must be a positive integer, got None"),
            ({"num_classes": True}, "num_classes must be a positive integer, got True"),
            ({"entry_factor": 0}, "entry_factor must be a positive integer, got 0"),
            ({"entry_factor": 2.0}, "entry_factor must be a positive integer, got 2.0"),
            ({"blocks": 3}, "blocks must be a sequence of one positive integer per stage, got 3"),
            ({"blocks": None}, "blocks must be a sequence of one positive integer per stage"),
            ({"blocks": ()}, "blocks must be a sequence of one positive integer per stage, got ()"),
            ({"blocks": "12"}, "blocks must be a sequence of one positive integer per stage"),
            ({"blocks": (1, 0)}, "blocks[1] must be a positive integer, got 0"),
            ({"blocks": (1, 2, 3)}, "strides must have one entry per stage (3), got 2: (1, 2)"),
            ({"strides": 2}, "strides must be a sequence of one positive integer per stage, got 2"),
            ({"strides": (1, 2, 2)}, "strides must have one entry per stage (2), got 3: (1, 2, 2)"),
            ({"strides": (1, 2.0)}, "strides[1] must be a positive integer, got 2.0"),
            ({"strides": (1, -2)}, "strides[1] must be a positive integer, got -2"),
            (
                {"half_channels": (1,)},
                "half_channels must have one entry per stage (2), got 1: (1,)",
            ),
            ({"half_channels": 4}, "half_channels must be a sequence of one positive integer"),
            ({"half_channels": (0, 4)}, "half_channels[0] must be a positive integer, got 0"),
            (
                {"half_channels": (1, 5)},
                "half_channels[1] must be 4, that is half_channels[0] times strides[1]**2, got 5",
            ),
            (
                {"strides": (2, 1), "half_channels": (6, 6)},
                "half_channels[0] must be divisible by strides[0]**2 = 4, got 6",
            ),
            (
                {"in_shape": (3, 4, 4)},
                "half_channels[0] must be at least 2 for two halves to hold the entry's 3 channels "
                "(3 channels, entry_factor 1, strides[0] 1), got 1",
            ),
            (
                {"in_shape": (3, 8, 8), "entry_factor": 2, "strides": (2, 1),
                 "half_channels": (20, 20)},
                "half_channels[0] must be at least 24 for two halves to hold the entry's 12 "
                "channels (3 channels, entry_factor 2, strides[0] 2), got 20",
            ),
            ({"in_shape": (1, 4)}, "in_shape must be (channels, height, width), got (1, 4)"),
            ({"in_shape": 32}, "in_shape must be (channels, height, width), got 32"),
            ({"in_shape": None}, "in_shape must be (channels, height, width), got None"),
            ({"in_shape": "1x4"}, "in_shape must be (channels, height, width), got '1x4'"),
            ({"in_shape": (0, 4, 4)}, "in_shape channels must be a positive integer, got 0"),
            ({"in_shape": (1, 4.0, 4)}, "in_shape height must be a positive integer, got 4.0"),
            ({"in_shape": (1, 4, -4)}, "in_shape width must be a positive integer, got -4"),
            (
                {"in_shape": (1, 4, 5)},
                "in_shape must have a height and width divisible by 2, the total stride "
                "(entry_factor 1 times strides (1, 2)); got (1, 4, 5)",
            ),
            (
                {"in_shape": (1, 6, 8), "entry_factor": 2},
                "in_shape must have a height and width divisible by 4",
            ),
            ({"kernel_sizes": (1, 3)}, "kernel_sizes must be three odd positive integers, got (1,"),
            ({"kernel_sizes": (1, 2, 1)}, "kernel_sizes must be three odd positive integers, got"),
            ({"kernel_sizes": (1, 3, -1)}, "kernel_sizes must be three odd positive integers, got"),
            ({"kernel_sizes": (1, 3.0, 1)}, "kernel_sizes must be three odd positive integers"),
            ({"kernel_sizes": 3}, "kernel_sizes must be three odd positive integers, got 3"),
            ({"kernel_sizes": "131"}, "kernel_sizes must be three odd positive integers, got '13"),
            ({"kernel_sizes": None}, "kernel_sizes must be three odd positive integers, got None"),
            ({"stride_on": "last"}, "stride_on must be \"first\" or \"middle\", got 'last'"),
            ({"stride_on": None}, 'stride_on must be "first" or "middle", got None'),
            ({"dropout": 1.0}, "dropout must be a number in [0, 1), got 1.0"),
            ({"dropout": -0.1}, "dropout must be a number in [0, 1), got -0.1"),
            ({"dropout": math.nan}, "dropout must be a number in [0, 1), got nan"),
            ({"dropout": "0.1"}, "dropout must be a number in [0, 1), got '0.1'"),
            ({"dropout": None}, "dropout must be a number in [0, 1), got None"),
            ({"dropout": False}, "dropout must be a number in [0, 1), got False"),
            (
                {"bottleneck_channels": 16},
                "bottleneck_channels must be a sequence of one positive integer per stage, got 16",
            ),
            (
                {"bottleneck_channels": (3,)},
                "bottleneck_channels must have one entry per stage (2), got 1: (3,)",
            ),
            (
                {"bottleneck_channels": (3, 0)},
                "bottleneck_channels[1] must be a positive integer, got 0",
            ),
            (
                {"bottleneck_channels": None, "bottleneck_ratio": 0},
                "bottleneck_ratio must be a positive integer, got 0",
            ),
            (
                {"bottleneck_channels": None, "bottleneck_ratio": 4.0},
                "bottleneck_ratio must be a positive integer, got 4.0",
            ),
            (
                {"bottleneck_channels": None},
                "bottleneck_ratio must be at most the smallest entry of half_channels, 1, got 4; "
                "or give bottleneck_channels",
            ),
        ],
    )  # fmt: skip
    def test_invalid_arguments_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            tiny(**arguments)

    @pytest.mark.parametrize("value", ["checkpoint", "Stored", None, ["stored"]])
    @pytest.mark.parametrize("name", ["backward", "streams"])
    def test_an_invalid_assigned_choice_is_refused(self, name, value):
        model = tiny()
        before = getattr(model, name)
        message = rf"{name} must be one of \(.*\), got {re.escape(repr(value))}"
        with pytest.raises(ValueError, match=message):
            setattr(model, name, value)
        assert getattr(copy.deepcopy(model), name) == getattr(model, name) == before

    @pytest.mark.parametrize("method", ["forward", "encode", "states"])
    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.rand(1, 4, 4), "x must have shape (B, 1, H, W), none of them 0, H and W "
             "multiples of 2, the network's total stride; got (1, 4, 4)"),
            (torch.rand(2, 3, 4, 4), "x must have shape (B, 1, H, W)"),
            (torch.rand(2, 1, 4, 5), "multiples of 2, the network's total stride; got (2, 1, 4,"),
            (torch.rand(2, 1, 3, 4), "multiples of 2, the network's total stride; got (2, 1, 3,"),
            (torch.rand(0, 1, 4, 4), "got (0, 1, 4, 4)"),
            (torch.rand(2, 1, 0, 4), "got (2, 1, 0, 4)"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "x must be floating point (images scaled "
             "to [0, 1]), got dtype torch.uint8; divide uint8 images by 255"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "got dtype torch.int64"),
            (torch.rand(2, 1, 4, 4).numpy(), "x must be a tensor of shape (B, 1, H, W), none of "
             "them 0, H and W multiples of 2, the network's total stride; got ndarray"),
        ],
    )  # fmt: skip
    def test_invalid_images_are_refused(self, method, x, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            list(getattr(tiny(), method)(x))

    @pytest.mark.parametrize(
        ("z", "message"),
        [
            (torch.rand(8, 2, 2), "z must be a representation of shape (B, 8, h, w), none of them "
             "0, got (8, 2, 2)"),
            (torch.rand(1, 4, 2, 2), "shape (B, 8, h, w), none of them 0, got (1, 4, 2, 2)"),
            (torch.rand(1, 8, 0, 2), "shape (B, 8, h, w), none of them 0, got (1, 8, 0, 2)"),
            (torch.zeros(1, 8, 2, 2, dtype=torch.int32), "z must be floating point, got dtype "
             "torch.int32"),
            (None, "z must be a tensor, got NoneType"),
        ],
    )  # fmt: skip
    def test_invalid_representations_are_refused(self, z, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            tiny().inverse(z)

    def test_active_dropout_is_refused_by_the_inverse(self):
        model = tiny(dropout=0.2)
        x = torch.rand(2, 1, 4, 4)
        with pytest.raises(ValueError, match=r"draws random numbers \(dropout\): call model.eval"):
            model.inverse(model.encode(x))
        model.eval()
        torch.testing.assert_close(model.inverse(model.encode(x)), x)
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
        torch.testing.assert_close(model.inverse(model.encode(x)), x)
