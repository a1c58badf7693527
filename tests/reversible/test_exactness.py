"""Never a wrong image: fixed-point streams return to the bit, or an error says why not."""

import pytest
import torch

import irevnet
from irevnet.reversible.streams import FixedPointStreams
from networks import BIJECTIVE, INJECTIVE, SMALL


def network(name, **overrides):
    torch.manual_seed(0)
    model = irevnet.create_model(name, **SMALL[name], streams="fixed", **overrides)
    # Statistics other than those of initialisation, with dead channels.
    model.train()
    for _ in range(5):
        model(torch.rand(8, *model.in_shape))
    return model.eval()


def grey(model, count=6):
    levels = torch.randint(0, 256, (count, *model.in_shape))
    return levels.float() / 255


@torch.no_grad()
@pytest.mark.parametrize("name", BIJECTIVE + INJECTIVE)
def test_images_come_back_to_the_bit_and_encoding_them_again_agrees(name):
    model = network(name)
    x = grey(model)
    z = model.encode(x)
    for verify in (None, True, False):
        assert torch.equal((model.inverse(z, verify=verify) * 255).round(), (x * 255).round())


def disturb(model):
    """Changes every F a little, as another batch size, device or number of threads may."""
    with torch.no_grad():
        for block in model.blocks:
            block.residual[-1].weight.mul_(1 + 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", INJECTIVE)
def test_an_injective_network_notices_that_f_was_computed_differently(name):
    model = network(name)
    x = grey(model)
    z = model.encode(x)
    disturb(model)
    with pytest.raises(ValueError, match=r"not exact: channels that are the same for every image"):
        model.inverse(z)
    assert model.inverse(z, verify=False).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("name", BIJECTIVE)
def test_a_bijective_network_cannot_notice_it_and_returns_another_image(name):
    """Every z belongs to an image under the present F, so verify=True finds it consistent."""
    model = network(name)
    z = model.encode(grey(model))
    disturb(model)
    assert torch.equal(model.encode(model.inverse(z, verify=True)), z)


@torch.no_grad()
def test_a_representation_near_the_limit_of_the_range_is_an_error():
    model = network("irevnet_digits_bijective", fraction_bits=16)
    z = model.encode(grey(model))
    z[0, 0, 0, 0] = 2**30 - 1
    z[1] = 2**30 - 2**16
    with pytest.raises(ValueError, match=r"overflow (inverting block|in the representation)"):
        model.inverse(z)


def test_half_precision_reads_values_beyond_its_own_scaling_range():
    streams = FixedPointStreams(16, torch.float16)
    stream = torch.tensor([0, 2**16, 100 * 2**16, -(2**20)], dtype=torch.int32)
    assert streams.read(stream).tolist() == [0.0, 1.0, 100.0, -16.0]


@torch.no_grad()
def test_a_network_in_half_precision():
    model = network("irevnet_digits_bijective").half()
    x = grey(model).half()
    assert torch.equal(model.inverse(model.encode(x)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_type_than_the_weights_are_refused_but_under_autocast(dtype):
    model = irevnet.create_model("irevnet_digits", **SMALL["irevnet_digits"]).eval()
    x = torch.rand(2, *model.in_shape, dtype=dtype)
    with pytest.raises(ValueError, match=rf"x must have the dtype of .*torch.float32, got {dtype}"):
        model(x)
    with torch.autocast("cpu", torch.bfloat16):
        model(x.float())


def test_shapes_can_be_computed_on_the_meta_device():
    with torch.device("meta"):
        model = irevnet.create_model("irevnet_digits", **SMALL["irevnet_digits"]).eval()
        z = model.encode(torch.rand(2, *model.in_shape))
        assert model.inverse(z).shape == (2, *model.in_shape)
