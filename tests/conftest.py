"""What every test has in common."""

import pytest
import torch

# Networks as small as the tests' are several times slower on two threads than on one, and tens of
# times on a machine that computes something else as well.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_state():
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)
