"""The networks: the i-RevNet, and the RevNet and ResNet that it is compared with."""

from irevnet.network.baselines import ResNet, RevNet
from irevnet.network.model import IRevNet

__all__ = ["IRevNet", "ResNet", "RevNet"]
