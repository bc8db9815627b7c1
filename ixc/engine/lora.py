"""Low-rank adapters (LoRA, arXiv:2106.09685) on the decoder's linear layers, and what remains of them: plain weights.

Partial LoRA, `PLoRALinear`'s own low-rank path, is part of the architecture and stays as it is.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ixc.models.ixc25.language import PLoRALinear
from ixc.models.ixc25.pretrained import IXCPreTrainedModel


class LoRA(nn.Module):
    """`alpha / rank * up(down(x))`; `up` starts at 0, so that at first nothing changes."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.down = nn.Linear(layer.in_features, rank, bias=False, **place)
        self.up = nn.Linear(rank, layer.out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank
        self.hook = layer.register_forward_hook(lambda _, given, out: out + self(given[0]))

    def forward(self, x: Float[Tensor, "*B i"]) -> Float[Tensor, "*B o"]:
        """What is added to the layer's output."""
        return self.scale * self.up(self.down(x))

    def weight(self) -> Float[Tensor, "o i"]:
        """What it would add to the layer's weights."""
        return self.scale * self.up.weight @ self.down.weight


def add_lora(model: IXCPreTrainedModel, rank: int, alpha: float) -> None:
    """Freeze the language model, and put an adapter beside each linear layer of its decoder; heads are left alone."""
    model.model.requires_grad_(False)
    for layer in _layers(model):
        layer.lora = LoRA(layer, rank, alpha)


@torch.no_grad()
def merge_lora(model: IXCPreTrainedModel) -> None:
    """Add every adapter to its layer's weights and remove it; a model without adapters stays as it is."""
    for layer in _layers(model):
        if isinstance(lora := getattr(layer, "lora", None), LoRA):
            layer.weight += lora.weight()
            lora.hook.remove()
            del layer.lora


def _layers(model: IXCPreTrainedModel) -> list[Any]:
    """The decoder's linear layers, which carry `lora` and `lora_hook` while there are adapters."""
    return [module for module in model.model.modules() if isinstance(module, PLoRALinear)]
