"""Norms whose running statistics stay as they are while a block is evaluated again."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["frozen_statistics"]


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Evaluates ``modules`` without touching their running statistics, in either mode.

    An inverse or a recomputation evaluates F a second time on inputs that the forward pass has
    already counted. In training mode batch norm still normalises with the statistics of the
    batch; in evaluation mode with the running ones, as usual.

    Inside the context, no thread updates these statistics: a network that is trained in one thread
    must not be inverted or differentiated in another at the same time.
    """
    norms = [
        m
        for module in modules
        for m in module.modules()
        if m.training and isinstance(m, _NormBase) and m.track_running_stats
    ]
    # Instance norm updates its running statistics as long as it has any, whatever the flag says.
    hidden = [(m, m.running_mean, m.running_var) for m in norms if isinstance(m, _InstanceNorm)]
    try:
        for norm in norms:
            norm.track_running_stats = False
        for norm, *_ in hidden:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for norm, mean, variance in hidden:
            norm.running_mean, norm.running_var = mean, variance
