import pytest
import torch
from torch import nn

from irevnet.reversible.batch_norm import frozen_statistics


def statistics(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.fixture
def network():
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
    )


def test_statistics_stay_and_the_result_is_the_same_in_training_mode(network):
    x = torch.randn(8, 3, 5, 5) * 4 + 2
    before = statistics(network)
    with frozen_statistics(network):
        assert not network[0].track_running_stats
        frozen = network(x)
    after = statistics(network)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(network(x), frozen)
    assert network[0].num_batches_tracked == 1
    assert not torch.equal(network[0].running_mean, before["0.running_mean"])


def test_evaluation_mode_still_uses_the_running_statistics(network):
    network(torch.randn(8, 3, 5, 5) * 4 + 2)
    network.eval()
    x = torch.randn(8, 3, 5, 5)
    with frozen_statistics(network):
        frozen = network(x)
    assert torch.equal(network(x), frozen)


def test_every_norm_is_restored_even_after_an_error(network):
    wrong = torch.randn(8, 2, 5, 5)
    with pytest.raises(RuntimeError), frozen_statistics(network):
        network(wrong)
    assert network[0].track_running_stats
    assert not network[2].track_running_stats


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_keeps_its_statistics_and_gives_the_same_result(training):
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    norm(torch.randn(8, 3, 5, 5) * 4 + 2)
    norm.train(training)
    x = torch.randn(8, 3, 5, 5)
    before = statistics(norm)
    with frozen_statistics(norm):
        frozen = norm(x)
    after = statistics(norm)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(norm(x), frozen)
    assert torch.equal(norm.running_mean, before["running_mean"]) == (not training)
