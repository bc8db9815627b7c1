"""The sizes of an IXC-2.5; the defaults are the official 7B's."""

import sys
from collections.abc import Iterator
from typing import Any, get_args, no_type_check

from transformers import PreTrainedConfig

from ixc.models.base import Pooling

ROPE_TYPES = ("default", "linear", "dynamic")
"""The rotary scalings of the official code."""
LINEARS = ("wqkv", "wo", "w1", "w2", "w3")
"""The linear layers of a decoder layer; each has a Partial LoRA."""
MAX_TILE = 8192
"""Pixels of a tile's side at most."""
MAX_TILES = 1024
"""Tiles of an image at most, whatever is asked for; the official evaluation has 9 to 55."""
_COUNTS = {
    "vocab_size": 2**22,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "max_position_embeddings": 2**31,
    "plora_rank": 2**16,
    "tile_size": MAX_TILE,
    "patch_size": MAX_TILE,
    "vision_hidden_size": 2**16,
    "vision_intermediate_size": 2**18,
    "vision_num_hidden_layers": 1024,
    "vision_num_attention_heads": 1024,
    "hd_num": MAX_TILES,
}
"""Whole numbers from 1 to these: several times what the largest models have, and no slip of a keyboard beyond."""
MAX_WEIGHTS = 10**12
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "end_of_turn_token_id")
_NUMBERS = ("rms_norm_eps", "vision_layer_norm_eps", "initializer_range", "plora_scale")
_LARGEST = sys.float_info.max
_MULTIPLES = (
    ("hidden_size", "num_attention_heads"),
    ("num_attention_heads", "num_key_value_heads"),
    ("vision_hidden_size", "vision_num_attention_heads"),
)


@no_type_check  # transformers lets the constructor take any key; checked calls in tests would refuse them
class IXCConfig(PreTrainedConfig):
    """Configuration of IXC-2.5 and IXC-2.5-Reward, vision tower included.

    Source: `config.json` of internlm-xcomposer2d5-7b; CLIP ViT-L/14 at 560 px.
    """

    model_type = "ixc2_5"
    keys_to_ignore_at_inference = ["past_key_values", "last_hidden_state"]

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
    plora_ranks: dict | None = None
    """The linear layers (`LINEARS`) whose rank differs; the 4KHD model's: `{"wqkv": 8}`."""
    plora_scales: dict | None = None
    """The linear layers whose scale differs."""
    tile_size: int = 560
    """Side of an image tile, pixels."""
    patch_size: int = 14
    vision_hidden_size: int = 1024
    vision_intermediate_size: int = 4096
    vision_num_hidden_layers: int = 24
    vision_num_attention_heads: int = 16
    vision_layer_norm_eps: float = 1e-5
    hd_num: int = 9
    """Tiles per image at most, the global view not counted."""
    pooling: Pooling = "last_token"
    """What the score head reads: the reward token (official checkpoint) or the mean state (the paper's text)."""
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 2
    image_token_id: int = 92528
    """Marks the places of image tokens in `input_ids`; no text is ever encoded to it."""
    end_of_turn_token_id: int = 92542
    tie_word_embeddings: bool = False
    use_cache: bool = True
    problem_type: str | None = "regression"
    """A score is any number: `pipeline("text-classification")` then leaves it as it is."""
    default_theta = 1e6

    def __post_init__(self, **kwargs: Any) -> None:
        for name, value in (
            ("rope_scaling", kwargs.get("rope_scaling")),
            ("rope_parameters", self.rope_parameters),
        ):
            if not isinstance(value, dict | None):
                raise ValueError(f'{name}: {value!r}: give {{"type": ..., "factor": ...}}, or null')
            if value and "factor" in value and not (value.get("type") or value.get("rope_type")):
                raise ValueError(
                    f"{name}: {value!r}: no type; add it, one of {', '.join(ROPE_TYPES)}"
                )
        if kwargs.get("num_labels") not in (1, None):
            raise ValueError(
                _labels(kwargs["num_labels"])
            )  # the base class would make so many names
        if self.id2label is None:
            kwargs["num_labels"] = 1
        super().__post_init__(**kwargs)
        if objection := next(self._objections(), None):
            raise ValueError(objection)
        for name in _NUMBERS:  # JSON writes 1.0 as 1
            setattr(self, name, float(getattr(self, name)))

    def _objections(self) -> Iterator[str]:
        """What no model can be built of, or would silently compute something else; each rests on those before it."""
        for name, most in _COUNTS.items():
            if not _is_whole(value := getattr(self, name)) or not 1 <= value <= most:
                yield f"{name}: {value!r:.40}: give a whole number, 1 to {most}"
        for name in _NUMBERS:
            if not _is_number(value := getattr(self, name)) or value < 0:
                yield f"{name}: {value!r:.40}: give a number, 0 at least"
        for name in _IDS:
            if not _is_whole(value := getattr(self, name)) or value < 0:
                yield f"{name}: {value!r:.40}: give a whole number, 0 at least"
            if value >= self.vocab_size:
                yield f"{name}: {value}: not among the {self.vocab_size} of the vocabulary"
        yield from _partial_objections(self.plora_ranks, self.plora_scales)
        yield from self._misfits()
        yield from _rope_objections(self.rope)

    def _misfits(self) -> Iterator[str]:
        """Sizes, each possible, that do not go together."""
        for whole, parts in _MULTIPLES:
            if getattr(self, whole) % getattr(self, parts):
                yield f"{whole}: {getattr(self, whole)}: not a multiple of {parts} ({getattr(self, parts)})"
        if self.head_dim % 2:
            yield f"num_attention_heads: {self.num_attention_heads}: heads of an odd size ({self.head_dim}) do not turn"
        if self.tile_size % (2 * self.patch_size):
            yield f"tile_size: {self.tile_size}: not a multiple of two patches ({2 * self.patch_size} pixels)"
        if self.pooling not in get_args(Pooling):
            yield f"pooling: {self.pooling!r}: unknown; one of {', '.join(get_args(Pooling))}"
        if self.num_labels != 1:
            yield _labels(self.num_labels)
        if self.problem_type != "regression":
            yield f'problem_type: {self.problem_type!r:.40}: a reward is any number; give "regression", or leave it out'
        if (weights := self._num_weights()) > MAX_WEIGHTS:
            yield f"num_hidden_layers, hidden_size, ...: {weights:.0e} weights, more than {MAX_WEIGHTS:.0e}; lower them"

    def _num_weights(self) -> int:
        """Weights, but for norms, Partial LoRA and what else is small."""
        layer = self.hidden_size * (3 * self.intermediate_size + 2 * self.hidden_size)
        tower = self.vision_hidden_size * (
            2 * self.vision_intermediate_size + 4 * self.vision_hidden_size
        )
        patches = self.vision_hidden_size * (self.tile_size // self.patch_size) ** 2
        layers = self.num_hidden_layers * layer + self.vision_num_hidden_layers * tower
        return layers + patches + 2 * self.vocab_size * self.hidden_size

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_parameters`, which the base class fills in."""
        return self.rope_parameters or {}

    def plora(self, linear: str) -> tuple[int, float]:
        """Rank and scale of a linear layer's Partial LoRA."""
        ranks, scales = self.plora_ranks or {}, self.plora_scales or {}
        return ranks.get(linear, self.plora_rank), float(scales.get(linear, self.plora_scale))

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


def _labels(value: object) -> str:
    return f"num_labels: {value!r:.40}: a reward is one number; give 1, or leave it out"


def _partial_objections(ranks: Any, scales: Any) -> Iterator[str]:
    for name, value in (("plora_ranks", ranks), ("plora_scales", scales)):
        if not isinstance(value, dict | None) or not set(value or ()) <= set(LINEARS):
            yield f"{name}: {value!r}: give an object with keys among {', '.join(LINEARS)}"
    for linear, rank in (ranks or {}).items():
        if not _is_whole(rank) or not 1 <= rank <= _COUNTS["plora_rank"]:
            yield f"plora_ranks.{linear}: {rank!r:.40}: give a whole number, 1 to {_COUNTS['plora_rank']}"
    for linear, scale in (scales or {}).items():
        if not _is_number(scale) or scale < 0:
            yield f"plora_scales.{linear}: {scale!r}: give a number, 0 at least"


def _rope_objections(rope: dict[str, Any]) -> Iterator[str]:
    kind, theta, factor = rope["rope_type"], rope["rope_theta"], rope.get("factor")
    if kind not in ROPE_TYPES:
        yield f"rope_scaling.type: {kind!r}: unknown; one of {', '.join(ROPE_TYPES)}"
    if not _is_number(theta) or theta < 1:
        yield f"rope_theta: {theta!r}: give a number, 1 at least; official: 1000000"
    if kind != "default" and (factor is None or not _is_number(factor) or factor < 1):
        yield f"rope_scaling.factor: {factor!r}: give a number, 1 at least"


def _is_number(value: object) -> bool:
    """Whether it is one that a float can hold: JSON's whole numbers have no end."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_LARGEST <= value <= _LARGEST
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
