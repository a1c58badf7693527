"""How many bytes training keeps between the forward and the backward pass (claim C8)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["saved_bytes"]


def saved_bytes(function: Callable[[], Tensor], model: nn.Module | None = None) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of ``function``.

    Storage that several saved tensors share is counted once.

    Args:
        function: a forward pass with gradients enabled.
        model: network whose parameters and buffers, which exist anyway, are not counted; or None.
    """
    present = [] if model is None else [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in present}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        # The tensor itself would keep its own graph alive, which would then never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The result keeps the graph, and so every storage, alive until the storages are counted.
        result = function()
        total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total
