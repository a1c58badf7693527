"""Random generators of devices that are absent here, simulated in the modules of torch."""

import pytest
import torch
from torch import nn

from irevnet.reversible.randomness import Randomness


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_the_generator_of_any_device_is_read_and_set(monkeypatch, kind):
    device = torch.device(kind, 0)
    state = {device: torch.tensor([7])}
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: state[device].clone())
    monkeypatch.setattr(module, "set_rng_state", lambda new, device: state.update({device: new}))
    randomness = Randomness(device)
    before = randomness.states()
    assert not randomness.drawn(before, randomness.states())
    state[device] = torch.tensor([8])  # as if a mask were drawn
    assert randomness.drawn(before, randomness.states())
    with randomness.restored():
        randomness.replay(before)
        assert state[device].item() == 7
    assert state[device].item() == 8


def test_a_device_whose_generator_cannot_be_read_refuses_random_layers():
    randomness = Randomness(torch.device("xla", 0))
    randomness.check(nn.Dropout(0.5).eval())
    with pytest.raises(RuntimeError, match=r'on xla devices .* use backward="stored"'):
        randomness.check(nn.Dropout(0.5))


def test_on_a_cpu_the_numbers_are_drawn_again_and_the_state_is_as_found():
    randomness = Randomness(torch.device("cpu"))
    before = randomness.states()
    drawn = torch.rand(3)
    assert randomness.drawn(before, randomness.states())
    after = torch.get_rng_state()
    with randomness.restored():
        randomness.replay(before)
        assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(torch.get_rng_state(), after)
