"""Reversible stacks of arbitrary functions: inverse, gradients, fixed point, errors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import irevnet
from irevnet import ReversibleSequential
from irevnet.analysis.memory import saved_bytes
from irevnet.reversible.coupling import CouplingBlock


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        x = self.norm(x)
        return self.attention(x, x, x, need_weights=False)[0]


def mlp(width):
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(2 * width, width),
    )


def convolutions(width):
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Dropout2d(0.3),
        spectral_norm(nn.Conv2d(3, width, 3, padding=1)),
    )


def transformer(**arguments):
    pairs = [(Attention(8), mlp(8)) for _ in range(3)]
    return ReversibleSequential(*pairs, dim=-1, **arguments), torch.rand(4, 5, 16)


def images(**arguments):
    functions = [
        convolutions(4),
        (convolutions(4), convolutions(4)),
        CouplingBlock(nn.PixelUnshuffle(2), 2),
        *(convolutions(16) for _ in range(4)),
    ]
    return ReversibleSequential(*functions, **arguments), torch.rand(3, 8, 6, 4)


def layered(**arguments):
    return ReversibleSequential(*(mlp(8) for _ in range(7)), dim=-1, **arguments), torch.rand(
        4, 5, 16
    )


KINDS = [transformer, images, layered]


def gradients(model, x):
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    out = model(x)
    (out.sin() * torch.arange(out.numel()).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("streams", ["float", "fixed"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_stored_activations(kind, training, streams):
    stored, x = kind(backward="stored", streams=streams)
    stored, x = stored.double().train(training), x.double()
    for backward in ("reversible", "balanced") if kind is layered else ("reversible",):
        model = copy.deepcopy(stored)
        model.backward = backward
        actual, expected = gradients(model, x), gradients(copy.deepcopy(stored), x)
        for result, exact in zip(actual, expected, strict=True):
            torch.testing.assert_close(result, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_and_states(kind):
    model, x = kind()
    model, x = model.double().eval(), x.double()
    with torch.no_grad():
        states = list(model.states(x))
        z = model.encode(x)
        assert torch.equal(states[0], x)
        assert torch.equal(states[-1], z)
        torch.testing.assert_close(model.inverse(z), x, rtol=0, atol=1e-10)
        for actual, expected in zip(model.inverse_states(z), reversed(states), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_a_function_is_an_irevnets_block_and_a_pair_a_revnets():
    f, g = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.rand(2, 6)
    x1, x2 = x.chunk(2, 1)
    assert torch.equal(ReversibleSequential(f)(x), torch.cat([x2, x1 + f(x2)], 1))
    y1 = x1 + f(x2)
    assert torch.equal(ReversibleSequential((f, g))(x), torch.cat([y1, x2 + g(y1)], 1))


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_point_is_exact_and_a_checksum_says_so(kind):
    model, x = kind(streams="fixed")
    model.eval()
    x = (x * 256).round() / 256
    with torch.no_grad():
        z = model.encode(x)
        checksum = model.checksum(x)
        assert z.dtype == torch.int32
        assert checksum.shape == (len(x),)
        assert torch.equal(model.inverse(z, checksum=checksum), x)
        z[1] += 1
        with pytest.raises(ValueError, match=r"not exact: 1 of \d inputs \(first: 1\) have a diff"):
            model.inverse(z, checksum=checksum)


def layers(count):
    return [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(count)]


def test_only_the_result_itself_is_saved_for_the_backward_pass():
    model = ReversibleSequential(*layers(6), dim=-1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        z = model(torch.rand(3, 8))
    assert [tensor.data_ptr() for tensor in kept] == [z.data_ptr()]
    assert kept[0].shape == z.shape


def test_a_result_that_was_changed_in_place_gives_no_gradients():
    model = ReversibleSequential(*layers(2), dim=-1)
    z = model(torch.rand(3, 8))
    z.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_memory_does_not_grow_with_depth():
    def saved(depth):
        model = ReversibleSequential(*((Attention(8), mlp(8)) for _ in range(depth)), dim=-1)
        return saved_bytes(lambda: model(torch.rand(4, 5, 16)), model)

    assert saved(2) == saved(9) == 4 * 5 * 16 * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReversibleSequential(nn.Identity(), dim="C"), "dim must be an integer, got 'C'"),
        (lambda: ReversibleSequential(backward="some"), "backward must be one of .* got 'some'"),
        (lambda: ReversibleSequential(streams="int"), "streams must be one of .* got 'int'"),
        (lambda: ReversibleSequential(fraction_bits=4), "fraction_bits must be an integer from 8"),
        (lambda: ReversibleSequential(torch.relu), r"functions\[0\] must be a module or a pair"),
        (
            lambda: ReversibleSequential(nn.Linear(2, 3))(torch.rand(2, 4)),
            r"F must return the shape of the half that it is added to, \(2, 2\), got \(2, 3\)",
        ),
        *(
            (
                lambda b=backward, s=streams: ReversibleSequential(
                    nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), backward=b, streams=s
                )(torch.rand(3, 8)),
                r"F must return the shape of the half that it is added to, \(3, 4\), got \(3, 1\)",
            )
            for backward in ("stored", "reversible", "balanced")
            for streams in ("float", "fixed")
        ),
        (
            lambda: ReversibleSequential(nn.Identity())(torch.rand(2, 5)),
            r"x must have an even size in dimension 1 and not be empty, got shape \(2, 5\)",
        ),
        (
            lambda: ReversibleSequential(nn.Identity())(torch.ones(2, 4, dtype=torch.int)),
            "x must be floating point, got dtype torch.int32",
        ),
        (
            lambda: ReversibleSequential(nn.Identity()).inverse(torch.full((2, 4), torch.nan)),
            "z must be finite, got 8 values that are not",
        ),
        (
            lambda: ReversibleSequential(nn.Identity()).checksum(torch.rand(2, 4)),
            "a checksum needs exact streams",
        ),
        (
            lambda: ReversibleSequential(nn.Dropout(0.5)).inverse(torch.rand(2, 4)),
            "block 0 draws random numbers",
        ),
        (
            lambda: ReversibleSequential(Attention(2), dim=-1, backward="balanced")(
                torch.rand(2, 3, 4)
            ),
            "block 0 is a Attention",
        ),
    ],
)
def test_invalid_arguments_and_inputs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class TestCheckInvertible:
    @pytest.mark.parametrize("kind", KINDS)
    def test_invertible_networks_pass(self, kind):
        model, x = kind()
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        result = irevnet.check_invertible(model.eval(), x)
        assert result.error < 1e-4
        assert result.double_error < 1e-10
        assert result.gradient_error < 1e-10
        assert torch.equal(torch.get_rng_state(), random_state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_a_network_of_the_zoo_with_fixed_point_streams_passes(self):
        model = irevnet.create_model("irevnet_digits_bijective", streams="fixed").eval()
        result = irevnet.check_invertible(model, torch.rand(2, 1, 8, 8))
        assert result.error <= 2**-16

    @pytest.mark.parametrize("scale", [1, 0.01])
    @pytest.mark.parametrize("std", [0.1, 1, 4])
    @pytest.mark.parametrize("fraction_bits", [8, 16])
    def test_fixed_point_rounding_is_not_an_error(self, fraction_bits, std, scale):
        model = irevnet.create_model(
            "irevnet_digits_bijective",
            streams="fixed",
            fraction_bits=fraction_bits,
            normalization=([0.5], [std]),
        ).eval()
        x = scale * torch.rand(2, 1, 8, 8)
        result = irevnet.check_invertible(model, x)
        # Half a unit, times the deviation, over the largest input.
        assert result.double_error <= 1e-8 + 2 ** -(fraction_bits + 1) * std / x.max()

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (nn.Dropout(0.5), "draws random numbers"),
            (spectral_norm(nn.Linear(2, 2)), "every evaluation of block 0 changes its"),
        ],
    )
    def test_functions_that_change_at_every_evaluation_are_refused(self, function, message):
        with pytest.raises(ValueError, match=message):
            irevnet.check_invertible(ReversibleSequential(function), torch.rand(3, 4))

    def test_networks_that_are_not_invertible_are_refused(self):
        class Twice(nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor
                self.norm = nn.BatchNorm1d(2)

            def forward(self, x):
                return 2 * x

            def inverse(self, z):
                return z / self.factor

        x = torch.rand(3, 2)
        result = irevnet.check_invertible(Twice(2), x)
        assert (result.error, result.gradient_error) == (0, None)
        with pytest.raises(ValueError, match=r"inverse is off by 0\.33 relative to the input"):
            irevnet.check_invertible(Twice(3), x)
        with pytest.raises(ValueError, match="must have a method inverse, Linear has none"):
            irevnet.check_invertible(nn.Linear(2, 2), x)

        class Counting(Twice):
            def inverse(self, z):
                return self.norm(z) * 0 + z / 2

        with pytest.raises(ValueError, match=r"inverse changes the buffer norm\.running_mean"):
            irevnet.check_invertible(Counting(2), x)


def test_functional_dropout_in_evaluation_mode_is_replayed_and_refused_by_the_inverse():
    class Always(nn.Module):
        def forward(self, x):
            return functional.dropout(x, 0.5)

    model = ReversibleSequential(*(nn.Sequential(nn.Linear(4, 4), Always()) for _ in range(5)))
    model, x = model.double().eval(), torch.rand(3, 8, dtype=torch.float64)
    stored = copy.deepcopy(model)
    stored.backward = "stored"
    for result, exact in zip(gradients(model, x), gradients(stored, x), strict=True):
        torch.testing.assert_close(result, exact, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="block 4 draws random numbers"):
        model.inverse(x)


class Swapped(CouplingBlock):
    """A block with other equations and its own inverse."""

    def forward(self, x_tilde, x, streams=None):
        return x, x_tilde - 2 * self.residual(x)

    def inverse(self, y_tilde, y, streams=None):
        return y + 2 * self.residual(y_tilde), y_tilde


def hooked():
    block = CouplingBlock(nn.Tanh())
    block.register_forward_hook(lambda _block, _inputs, halves: (halves[0], 2 * halves[1]))
    return block


def with_instance_forward():
    block = CouplingBlock(nn.Tanh())
    block.forward = lambda x_tilde, x, streams=None: (x, x_tilde)
    return block


class TestOtherBlocks:
    @pytest.mark.parametrize(
        "make", [lambda: Swapped(nn.Tanh()), hooked, with_instance_forward], ids=str
    )
    def test_gradients_that_would_be_wrong_are_refused(self, make):
        model = ReversibleSequential(nn.Linear(3, 3), make())
        x = torch.rand(2, 6)
        message = "block 1 overrides forward or has hooks"
        for backward, streams in [
            ("reversible", "float"),
            ("reversible", "fixed"),
            ("stored", "fixed"),
        ]:
            model.backward, model.streams = backward, streams
            with pytest.raises(ValueError, match=message):
                model(x)
        model.backward, model.streams = "stored", "float"
        model(x).sum().backward()
        x1, x2 = model.blocks[0](*x.chunk(2, 1))
        assert torch.equal(model(x), torch.cat(model.blocks[1](x1, x2), 1))
        with torch.no_grad():
            model.backward = "reversible"
            assert torch.equal(model(x), torch.cat(model.blocks[1](x1, x2), 1))

    @pytest.mark.parametrize("training", [True, False])
    def test_the_inverse_is_that_of_the_block(self, training):
        model = ReversibleSequential(
            *(Swapped(nn.BatchNorm1d(3)) for _ in range(3)), backward="stored"
        )
        model, x = model.double().train(training), torch.rand(5, 6, dtype=torch.float64)
        z = model(x)
        torch.testing.assert_close(model.inverse(z), x, rtol=0, atol=1e-12)
        assert all(b.residual.num_batches_tracked == int(training) for b in model.blocks)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("make", [hooked, with_instance_forward])
    def test_an_inverse_that_would_be_wrong_is_refused(self, make, training):
        model = ReversibleSequential(nn.Linear(3, 3), make()).train(training)
        with pytest.raises(ValueError, match="block 1 has hooks or an instance attribute forward"):
            model.inverse(torch.rand(2, 6))
