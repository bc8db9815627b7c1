"""The kernels under their former name."""

from ixc.models.kernels import NoAttention, refuse_attention, use_attention

__all__ = ["NoAttention", "refuse_attention", "use_attention"]
