"""Small networks and short recipes for the tests of training."""

import torch

import irevnet
from irevnet.training import TrainingConfig


def network(seed=0, **overrides):
    torch.manual_seed(seed)
    arguments = {"blocks": (1, 1, 1), "bottleneck_channels": (4, 4, 4), **overrides}
    return irevnet.create_model("irevnet_digits", **arguments)


def config(**changes):
    return TrainingConfig(**{"epochs": 2, "batch_size": 32, "learning_rate": 0.1, **changes})


def assert_same_bits(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
