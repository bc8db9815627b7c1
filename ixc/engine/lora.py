"""Low-rank adapters (LoRA, arXiv:2106.09685) on the decoder's linear layers, and what remains of them: plain weights,
and the adapters by themselves in the format of Hugging Face's PEFT.

A low-rank path that is part of an architecture stays as it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from ixc.engine.optim import copied, trained
from ixc.io.files import replacing_folder
from ixc.models.base import VisionLanguageModel

PREFIX = "base_model.model."
"""What PEFT puts before the name of every weight of the model."""
NAMES = {".lora.down.weight": ".lora_A.weight", ".lora.up.weight": ".lora_B.weight"}
"""How an adapter's weights are called here, and by PEFT."""


class LoRA(nn.Module):
    """`alpha / rank * up(down(x))`; `up` starts at 0, so that at first nothing changes."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.down = nn.Linear(layer.in_features, rank, bias=False, **kind)
        self.up = nn.Linear(rank, layer.out_features, bias=False, **kind)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank
        self.hook = layer.register_forward_hook(lambda _, inputs, out: out + self(inputs[0]))

    def forward(self, x: Float[Tensor, "*B i"]) -> Float[Tensor, "*B o"]:
        """What is added to the layer's output."""
        return self.scale * self.up(self.down(x))

    def weight(self) -> Float[Tensor, "o i"]:
        """What it would add to the layer's weights."""
        return self.scale * self.up.weight @ self.down.weight


def add_lora(model: VisionLanguageModel, rank: int, alpha: float) -> None:
    """Freeze the language model, and put an adapter beside each linear layer of its decoder; heads are left alone."""
    model.decoder_module().requires_grad_(False)
    for layer in model.lora_layers():
        layer.lora = LoRA(layer, rank, alpha)


@torch.no_grad()
def merge_lora(model: VisionLanguageModel) -> None:
    """Add every adapter to its layer's weights and remove it; a model without adapters stays as it is."""
    for layer in model.lora_layers():
        if isinstance(lora := getattr(layer, "lora", None), LoRA):
            layer.weight += lora.weight()
            lora.hook.remove()
            del layer.lora


@dataclass(frozen=True)
class Adapter:
    """What was trained of a model with adapters, as PEFT reads it."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    """The content of `adapter_config.json`."""

    def save(self, folder: Path) -> None:
        """Write what `peft.PeftModel.from_pretrained` loads beside the base model; the folder appears whole."""
        with replacing_folder(folder) as part:
            save_file(self.weights, part / "adapter_model.safetensors", {"format": "pt"})
            text = json.dumps(self.config, indent=2, sort_keys=True)
            (part / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def adapter_of(model: VisionLanguageModel, base: Path) -> Adapter | None:
    """A copy of the adapters and of the trained heads, before they are merged; None if there are no adapters.

    Args:
        base: the folder of the model that they belong beside.
    """
    with_adapter = {id(layer) for layer in model.lora_layers() if hasattr(layer, "lora")}
    layers = {name: part for name, part in model.named_modules() if id(part) in with_adapter}
    if not layers:
        return None
    # Everything that is trained: adapters by PEFT's names for them, heads as modules that are saved whole.
    weights: dict[str, Tensor] = {}
    heads: set[str] = set()
    for name, weight in trained(model).items():
        if ".lora." not in name:
            heads.add(name.removesuffix(".weight"))
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        weights[PREFIX + name] = copied(weight)
    # All adapters are of one rank.
    lora: Any = next(iter(layers.values())).lora
    rank = lora.down.out_features
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": lora.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "modules_to_save": sorted(heads),
        "inference_mode": True,
    }
    return Adapter(weights, config)
