"""The sizes of an IXC-2.5; the defaults are the official 7B's."""

from typing import Any, Literal, no_type_check

from transformers import PreTrainedConfig

ROPE_TYPES = ("default", "linear", "dynamic")
"""The rotary scalings of the official code."""


@no_type_check  # transformers lets the constructor take any key; checked calls in tests would refuse them
class IXCConfig(PreTrainedConfig):
    """Configuration of IXC-2.5 and IXC-2.5-Reward, vision tower included.

    Source: `config.json` of internlm-xcomposer2d5-7b; CLIP ViT-L/14 at 560 px.
    """

    model_type = "ixc2_5"

    vocab_size: int = 92544
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    """`rope_theta`, `rope_type` (one of `ROPE_TYPES`) and, for scaling, `factor`; official: theta 1e6, no scaling.
    The older spelling `rope_theta=..., rope_scaling={"type": ..., "factor": ...}` is understood too."""
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    plora_rank: int = 256
    """Rank of the Partial LoRA that only image tokens pass through."""
    plora_scale: float = 1.0
    """Its alpha over its rank."""
    tile_size: int = 560
    """Side of a picture tile, pixels."""
    patch_size: int = 14
    vision_hidden_size: int = 1024
    vision_intermediate_size: int = 4096
    vision_num_hidden_layers: int = 24
    vision_num_attention_heads: int = 16
    vision_layer_norm_eps: float = 1e-5
    hd_num: int = 9
    """Tiles per picture at most, the global view not counted."""
    pooling: Literal["last_token", "mean"] = "last_token"
    """What the score head reads: the reward token (official checkpoint) or the mean state (the paper's text)."""
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 2
    image_token_id: int = 92528
    """Marks the places of picture tokens in `input_ids`; no text is ever encoded to it."""
    end_of_turn_token_id: int = 92542
    tie_word_embeddings: bool = False
    use_cache: bool = True
    default_theta = 1e6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        kind = self.rope_parameters["rope_type"]
        if kind not in ROPE_TYPES:
            raise ValueError(f"rope_scaling.type: {kind!r}: unknown; one of {', '.join(ROPE_TYPES)}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def merged_size(self) -> int:
        """Channels of four merged patches, where newline and separator live."""
        return 4 * self.vision_hidden_size

    @property
    def side(self) -> int:
        """Merged tokens along one side of a tile; official: 20."""
        return self.tile_size // self.patch_size // 2
