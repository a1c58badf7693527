import pytest
import torch
from torch import nn

from irevnet import create_model
from irevnet.analysis.memory import saved_bytes


def test_counts_what_autograd_keeps_once_and_no_parameters():
    x = torch.rand(10, 5, requires_grad=True)
    linear = nn.Linear(5, 7, bias=False)
    # The linear layer keeps its input, sigmoid its output; squaring keeps that same output again.
    assert saved_bytes(lambda: linear(x).sigmoid().square(), linear) == 4 * (10 * 5 + 10 * 7)
    # The weight is kept, too, for the gradient of the input.
    assert saved_bytes(lambda: linear(x).sigmoid().square()) == 4 * (10 * 5 + 10 * 7 + 5 * 7)


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
def test_memory_of_the_reversible_backward_does_not_grow_with_depth(name):
    x = torch.rand(4, 1, 8, 8)
    counted = {}
    for backward in ("stored", "reversible"):
        for blocks in (2, 8):
            model = create_model(name, blocks=(blocks,) * 3, backward=backward)
            counted[backward, blocks] = saved_bytes(lambda model=model: model(x), model)
    assert counted["reversible", 2] == counted["reversible", 8]
    assert counted["stored", 8] > 3 * counted["stored", 2]
    assert counted["stored", 8] > 10 * counted["reversible", 8]
