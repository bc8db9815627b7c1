"""IXC-2.5 with its two heads: the chat model's vocabulary and the reward model's score."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ixc.model.configuration import IXCConfig
from ixc.model.language import InternLM2, PLoRALinear
from ixc.model.vision import VisionEmbeddings, VisionTower, merge_patches, picture_sequence


class IXCPreTrainedModel(PreTrainedModel):
    """Vision tower, projector and language model; the heads are its subclasses."""

    config_class = IXCConfig
    config: IXCConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [
        r"output\.weight",
        r"score\.weight",
        r"post_layernorm",
        r"lora_(sft|dpo|web)",
    ]

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.model = InternLM2(config)
        self.vit = VisionTower(config)
        self.vision_proj = nn.Sequential(
            nn.Linear(config.merged_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.plora_glb_GN = nn.Parameter(torch.zeros(1, 1, config.merged_size))
        self.plora_sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.merged_size))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PLoRALinear):  # B = 0: an untrained Partial LoRA changes nothing
            nn.init.kaiming_uniform_(module.Plora_A.weight, a=5**0.5)
            nn.init.zeros_(module.Plora_B.weight)
        if isinstance(module, VisionEmbeddings):  # patches of unit size, and positions that are seen beside them
            nn.init.kaiming_normal_(module.patch_embedding.weight, nonlinearity="linear")
            nn.init.normal_(module.position_embedding.weight, std=0.5)

    def encode_pictures(self, pictures: Sequence[tuple[Float[Tensor, "_ 3 S S"], int]]) -> list[Float[Tensor, "_ D"]]:
        """Projected tokens of each picture; all tiles pass the tower together.

        Args:
            pictures: (normalised tiles with the global view first, rows of tiles) per picture.
        """
        if not pictures:
            return []
        counts = [len(tiles) for tiles, _ in pictures]
        grids = merge_patches(self.vit(torch.cat([tiles for tiles, _ in pictures]).to(self.plora_glb_GN)))
        sequences = [
            picture_sequence(grid, rows, self.plora_sub_GN, self.plora_glb_GN)
            for grid, (_, rows) in zip(grids.split(counts), pictures, strict=True)
        ]
        projected = self.vision_proj(torch.cat(sequences))
        return list(projected.split([len(s) for s in sequences]))

    def freeze_vision(self) -> None:
        """Stop training everything that turns a picture into tokens (paper, section 3, Training Strategy)."""
        for part in (self.vit, self.vision_proj):
            part.requires_grad_(False)
        self.plora_glb_GN.requires_grad_(False)
        self.plora_sub_GN.requires_grad_(False)


class IXCForCausalLM(IXCPreTrainedModel):
    """The chat model: base, policy and reference."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Int[Tensor, "B T"], **kwargs: Any) -> Float[Tensor, "B T V"]:
        """Logits; `kwargs` as in `InternLM2.forward`."""
        return self.output(self.model(input_ids, **kwargs))


class IXCForRewardModel(IXCPreTrainedModel):
    """The reward model, and the critic: one number per token, read where the caller pools."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids: Int[Tensor, "B T"], **kwargs: Any) -> Float[Tensor, "B T D"]:
        """Hidden states; `ixc.model.layout.Batch.rewards` pools them. `kwargs` as in `InternLM2.forward`."""
        return self.model(input_ids, **kwargs)
