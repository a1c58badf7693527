"""Settings for every test."""

import pytest
import torch

# Networks as small as those of the tests are several times slower on two threads than on one, and
# tens of times slower if the machine is busy with something else.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_state():
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)
