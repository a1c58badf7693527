"""Training of a classifier: recipes, a loop that survives interruptions, evaluation."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irevnet.training.checkpoint import Checkpoint, CheckpointError
    from irevnet.training.config import TrainingConfig, shortened
    from irevnet.training.evaluation import Evaluation, evaluate
    from irevnet.training.processes import LostProcessError, join_processes
    from irevnet.training.signals import Stopped
    from irevnet.training.trainer import NonFiniteLossError, Trainer, train

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Evaluation",
    "LostProcessError",
    "NonFiniteLossError",
    "Stopped",
    "Trainer",
    "TrainingConfig",
    "evaluate",
    "join_processes",
    "shortened",
    "train",
]

_MODULES = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "Evaluation": "evaluation",
    "LostProcessError": "processes",
    "NonFiniteLossError": "trainer",
    "Stopped": "signals",
    "Trainer": "trainer",
    "TrainingConfig": "config",
    "evaluate": "evaluation",
    "join_processes": "processes",
    "shortened": "config",
    "train": "trainer",
}


def __getattr__(name: str) -> object:
    # Loaded on demand, so that importing the recipe alone does not import PyTorch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"irevnet.training.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
