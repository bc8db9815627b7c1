"""IXC-2.5 and IXC-2.5-Reward: the architecture under the official parameter names."""

from ixc.model.configuration import IXCConfig
from ixc.model.heads import IXCForCausalLM, IXCForRewardModel, IXCModel, IXCPreTrainedModel
from ixc.model.layout import Batch, Tree, collate
from ixc.model.processing import IXCProcessor

__all__ = [
    "Batch",
    "IXCConfig",
    "IXCForCausalLM",
    "IXCForRewardModel",
    "IXCModel",
    "IXCPreTrainedModel",
    "IXCProcessor",
    "Tree",
    "collate",
]
