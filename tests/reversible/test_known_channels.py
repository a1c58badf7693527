import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import irevnet
from irevnet.data import load_digits
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.known_channels import KnownChannels, known_channels, known_values
from irevnet.reversible.layers import split
from irevnet.training import TrainingConfig, train
from networks import BIJECTIVE, INJECTIVE, SMALL, images, small_irevnet

YES, NO = True, False


def blocks(*strides):
    return [CouplingBlock(nn.Identity(), stride) for stride in strides]


@pytest.mark.parametrize(
    ("first", "second", "strides", "expected"),
    [
        # Nothing known, nothing to follow.
        ((NO, NO), (NO, NO), (1, 1), []),
        # The second half is all zeros, so F is constant there: known channels stay known for one
        # block; after that, F has read the image.
        (
            (NO, YES),
            (YES, YES),
            (1, 1, 1),
            [((NO, YES), (YES, YES)), ((YES, YES), (NO, YES)), ((NO, YES), (NO, NO))],
        ),
        # F reads the image at once: the other half becomes unknown, this one is known once more.
        ((NO, NO), (NO, YES), (1, 1), [((NO, NO), (NO, YES)), ((NO, YES), (NO, NO))]),
        ((NO, NO), (YES, NO), (1,), [((NO, NO), (YES, NO)), ((YES, NO), (NO, NO))]),
        # S makes four known channels out of one, in the order of pixel_unshuffle.
        (
            (NO, NO),
            (NO, YES),
            (2, 1),
            [((NO, NO), (NO, YES)), ((NO,) * 4 + (YES,) * 4, (NO,) * 8)],
        ),
        # One entry per block, and one more for the last state.
        ((YES,), (YES,), (1,), [((YES,), (YES,)), ((YES,), (YES,))]),
    ],
)  # fmt: skip
def test_known_channels_are_followed_until_the_image_reaches_them(first, second, strides, expected):
    actual = known_channels(KnownChannels(first, second), blocks(*strides))
    assert actual == [KnownChannels(*halves) for halves in expected]


def test_restore_changes_the_known_channels_alone():
    known = KnownChannels((NO, YES), (YES, NO))
    state = torch.zeros(2, 3, 2, 4, 5)
    values = torch.ones(2, 3, 2, 4, 5)
    first, second = known.restore(tuple(state), tuple(values))
    assert torch.equal(first, values[0] * torch.tensor([0.0, 1.0])[:, None, None])
    assert torch.equal(second, values[0] * torch.tensor([1.0, 0.0])[:, None, None])


@pytest.mark.parametrize("name", BIJECTIVE)
def test_bijective_networks_know_nothing(name):
    assert irevnet.create_model(name, **SMALL[name]).known == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", INJECTIVE)
def test_known_channels_are_exactly_the_constant_ones(name, training):
    model = small_irevnet(name, dropout=0.0).train(training)
    x = images(model, 6)
    with torch.no_grad():
        states = list(model.states(x))
        entry = split(next(model.states(torch.zeros_like(x))))
        values = known_values(model.known, model.blocks, *entry)
    # The second half is zeros, so there are three states with known channels; none after that.
    assert len(model.known) == len(values) == 3
    for state, known, exact in zip(states, model.known, values, strict=False):
        mask = torch.tensor(known.first + known.second)
        constant = (state == state[:1]).flatten(2).all(2).all(0)
        assert torch.equal(constant, mask)
        # To the bit: an inverse that puts them back starts each F from the very same input.
        assert torch.equal(torch.cat(exact, 1)[:, mask], state[:, mask])
    after = states[3]
    assert not (after == after[:1]).flatten(2).all(2).all(0).any()


@pytest.fixture(scope="module")
def trained():
    """The injective network of the digits after 76 steps, in evaluation mode, float32."""
    torch.manual_seed(0)
    model = irevnet.create_model("irevnet_digits")
    config = TrainingConfig(epochs=4, batch_size=64, learning_rate=0.1)
    data = load_digits()
    rows = train(model, data, config)
    assert rows[-1]["train_accuracy"] > 0.9
    return model.eval(), data.test.first(540)[0]


def test_the_float32_inverse_survives_training_because_known_channels_are_restored(
    trained, monkeypatch
):
    model, x = trained

    def error():
        with torch.no_grad():
            return (model.inverse(model.encode(x)) - x).abs().max().item()

    assert error() < 1e-5
    monkeypatch.setattr(model, "known", [])
    assert error() > 1e-3


def test_in_float64_the_inverse_is_accurate_without_known_channels(trained, monkeypatch):
    model, x = trained
    model, x = model.double(), x.double()
    with torch.no_grad():
        z = model.encode(x)
        restored = model.inverse(z)
        monkeypatch.setattr(model, "known", [])
        plain = model.inverse(z)
    model.float()
    torch.testing.assert_close(restored, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(plain, x, rtol=0, atol=1e-8)


def test_masks_are_made_once_for_a_device_and_not_while_traced():
    known = KnownChannels((True, False), (False, False))
    fake = FakeTensorMode()
    with fake:
        known.masks(torch.device("cpu"))
    first, second = known.masks(torch.device("cpu"))
    assert first.flatten().tolist() == [True, False]
    assert second.flatten().tolist() == [False, False]
    assert known.masks(torch.device("cpu"))[0] is first
    assert known.masks(torch.device("meta"))[0].is_meta
    assert known == KnownChannels((True, False), (False, False))


def test_an_inverse_under_inference_mode_leaves_gradients_possible():
    model = small_irevnet("irevnet_digits")
    x = images(model).requires_grad_()
    with torch.inference_mode():
        model.inverse(model.encode(x))
    (gradient,) = torch.autograd.grad((model.inverse(model.encode(x)) ** 2).sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach(), rtol=0, atol=1e-10)
