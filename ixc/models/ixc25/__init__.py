"""IXC-2.5 and IXC-2.5-Reward: the architecture under the official parameter names."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from ixc.models.base import BadCheckpoint
from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.heads import IXCForCausalLM, IXCForRewardModel, IXCModel
from ixc.models.ixc25.official import from_official, to_official
from ixc.models.ixc25.pretrained import IXCPreTrainedModel
from ixc.models.ixc25.processing import IXCProcessor

__all__ = [
    "BadCheckpoint",
    "IXCConfig",
    "IXCForCausalLM",
    "IXCForRewardModel",
    "IXCModel",
    "IXCPreTrainedModel",
    "IXCProcessor",
    "from_official",
    "to_official",
]

AutoConfig.register(IXCConfig.model_type, IXCConfig)
AutoModel.register(IXCConfig, IXCModel)
AutoModelForCausalLM.register(IXCConfig, IXCForCausalLM)
AutoModelForImageTextToText.register(IXCConfig, IXCForCausalLM)
AutoModelForSequenceClassification.register(IXCConfig, IXCForRewardModel)
