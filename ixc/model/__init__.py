"""IXC-2.5 and IXC-2.5-Reward: the architecture under the official parameter names."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from ixc.model.base import IXCPreTrainedModel
from ixc.model.configuration import IXCConfig
from ixc.model.heads import IXCForCausalLM, IXCForRewardModel, IXCModel
from ixc.model.layout import Batch, Tree, collate
from ixc.model.official import BadCheckpoint, from_official, to_official
from ixc.model.processing import IXCProcessor

__all__ = [
    "BadCheckpoint",
    "Batch",
    "IXCConfig",
    "IXCForCausalLM",
    "IXCForRewardModel",
    "IXCModel",
    "IXCPreTrainedModel",
    "IXCProcessor",
    "Tree",
    "collate",
    "from_official",
    "to_official",
]

AutoConfig.register(IXCConfig.model_type, IXCConfig)
AutoModel.register(IXCConfig, IXCModel)
AutoModelForCausalLM.register(IXCConfig, IXCForCausalLM)
AutoModelForImageTextToText.register(IXCConfig, IXCForCausalLM)
AutoModelForSequenceClassification.register(IXCConfig, IXCForRewardModel)
