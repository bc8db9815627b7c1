"""IXC-2.5 with its two heads: the chat model's vocabulary and the reward model's score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from ixc.model.configuration import IXCConfig
from ixc.model.language import Attention, DecoderLayer, InternLM2, PLoRALinear
from ixc.model.layout import Batch
from ixc.model.vision import VisionEmbeddings, VisionTower, merge_patches, picture_sequence

HEADS = ("output.weight", "score.weight")
UNUSED_KEYS = (
    r"^vit\.vision_tower\.vision_model\.(post_layernorm\.(weight|bias)|embeddings\.position_ids)$",
    r"^model\.layers\.\d+\.(attention|feed_forward)\.(wqkv|wo|w[123])\.lora_(sft|dpo|web)_[AB]\.(weight|bias)$",
    r"^model\.(layers\.\d+\.attention\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
)
"""What official checkpoints may hold and no score or answer depends on."""


class BadCheckpoint(ValueError):
    """A folder that is not a whole checkpoint of this architecture: what is wrong with which file or key."""


def some(names: Sequence[str]) -> str:
    """The first of many names, for an error.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class IXCPreTrainedModel(PreTrainedModel):
    """Vision tower, projector and language model under the official names; the heads are its subclasses."""

    config_class = IXCConfig
    config: IXCConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "VisionLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": Attention}
    _keys_to_ignore_on_load_unexpected = [r"^output\.weight", r"^score\.weight", *UNUSED_KEYS]

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
        if isinstance(module, VisionEmbeddings):  # patches of unit size, and positions as loud as a white ground
            nn.init.kaiming_normal_(module.patch_embedding.weight, nonlinearity="linear")
            nn.init.normal_(module.position_embedding.weight, std=2.0)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', but a pickle is never read, which may run any code, and only a head may be new.

        Raises:
            BadCheckpoint: another weight is missing, or one is unknown.
        """
        told = kwargs.pop("output_loading_info", False)
        options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
        model, found = super().from_pretrained(*args, **options)  # pyright: ignore[reportGeneralTypeIssues]
        for names, what in (
            (set(found["missing_keys"]) - set(HEADS), "missing; fetch all files of the checkpoint"),
            (found["unexpected_keys"], "not of this architecture; is it an IXC-2.5?"),
        ):
            if names:
                raise BadCheckpoint(f"{model.name_or_path}: {some(sorted(names))} {what}")
        return (model, found) if told else model

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = value  # pyright: ignore[reportAttributeAccessIssue]

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

    def get_image_features(
        self, pixel_values: Float[Tensor, "N 3 S S"], tile_grids: Int[Tensor, "pictures 2"]
    ) -> Float[Tensor, "P D"]:
        """Projected tokens of a batch's pictures, one after another.

        Args:
            pixel_values: tiles of all pictures; each picture's global view comes before its tiles.
            tile_grids: rows and columns of tiles of each picture.
        """
        grids = tile_grids.tolist()
        tiles = pixel_values.split([rows * columns + 1 for rows, columns in grids])
        return torch.cat(self.encode_pictures([(t, rows) for t, (rows, _) in zip(tiles, grids, strict=True)]))

    def freeze_vision(self) -> None:
        """Stop training everything that turns a picture into tokens (paper, section 3, Training Strategy)."""
        for part in (self.vit, self.vision_proj):
            part.requires_grad_(False)
        self.plora_glb_GN.requires_grad_(False)
        self.plora_sub_GN.requires_grad_(False)

    def states(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "pictures 2"] | None = None,
        features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm: what every head reads.

        Args:
            input_ids: `config.image_token_id` where a picture token belongs.
            attention_mask, position_ids, past_key_values, inputs_embeds: as in `InternLM2.forward`.
            pixel_values, tile_grids: the pictures, as in `get_image_features`.
            features: picture tokens computed before, instead of the pictures.
            use_cache: return keys and values of this pass for the next.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if pixel_values is not None and tile_grids is not None:
            features = self.get_image_features(pixel_values, tile_grids)
        hidden = self.model(
            input_ids, features, attention_mask, position_ids, past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class IXCModel(IXCPreTrainedModel):
    """IXC-2.5 without a head."""

    _keys_to_ignore_on_load_unexpected = IXCPreTrainedModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.post_init()

    @capture_outputs
    def forward(self, input_ids: Int[Tensor, "B T"] | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Hidden states; arguments as in `states`."""
        return self.states(input_ids, **kwargs)


class IXCForCausalLM(IXCPreTrainedModel, GenerationMixin):
    """The chat model: base, policy and reference."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.output: nn.Linear = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if self.generation_config is not None:
            self.generation_config.eos_token_id = list(self.ends)
            control = {config.image_token_id, config.bos_token_id}
            self.generation_config.suppress_tokens = sorted(control - set(self.ends))

    @property
    def ends(self) -> tuple[int, int]:
        """Either of these ends an answer: `</s>` and the turn's end, as in the authors' chat."""
        return self.config.eos_token_id, self.config.end_of_turn_token_id

    @property
    def unsampled(self) -> list[int]:
        """Ids that are no text and end nothing, which no answer may contain; `folder.load` has them of the tokenizer.

        The config alone knows two of them. They are kept as `suppress_tokens`, which Transformers' `generate` heeds.
        """
        kept = self.generation_config and self.generation_config.suppress_tokens
        return list(kept or ())

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary head."""
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the vocabulary head."""
        self.output = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        pixel_values: Float[Tensor, "N 3 S S"] | None = None,
        tile_grids: Int[Tensor, "pictures 2"] | None = None,
        features: Float[Tensor, "P D"] | None = None,
        use_cache: bool | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, and the loss of `labels`.

        Args:
            input_ids ... use_cache: as in `states`; spelled out because `generate` reads this signature.
            labels: token ids, -100 where none is to be learned; not shifted.
            logits_to_keep: only the last so many columns, or these; 0: all.
        """
        out = self.states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            pixel_values,
            tile_grids,
            features,
            use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        assert out.last_hidden_state is not None
        logits = self.output(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Ids of prompt and answer: Transformers' `generate`, with `pixel_values` and `tile_grids`, or `features`."""
        return super().generate(inputs, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The pictures go in with the prompt, and then stand in the cache."""
        given = {"is_first_iteration": is_first_iteration, **kwargs}
        inputs = super().prepare_inputs_for_generation(input_ids, **given)  # pyright: ignore[reportAttributeAccessIssue]
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "tile_grids", "features"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Several answers to a prompt: its pictures pass the tower once, their tokens are repeated."""
        pixels, grids = kwargs.pop("pixel_values", None), kwargs.pop("tile_grids", None)
        features = kwargs.pop("features", None) if pixels is None else self.get_image_features(pixels, grids)
        if features is not None and input_ids is not None:
            counts = (input_ids == self.config.image_token_id).sum(1).tolist()
            features = torch.cat([row for row in features.split(counts) for _ in range(expand_size)])
        given = (expand_size, is_encoder_decoder, input_ids)
        ids, kwargs = super()._expand_inputs_for_generation(*given, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return ids, kwargs | ({} if features is None else {"features": features})


@dataclass
class RewardOutput(ModelOutput):
    """`logits` is the name that Transformers gives to the score of a sequence."""

    logits: Float[Tensor, "B 1"] | None = None
    last_hidden_state: Float[Tensor, "B T D"] | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class IXCForRewardModel(IXCPreTrainedModel):
    """The reward model, and the critic: one number per token, read where the caller pools."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    @capture_outputs
    def forward(
        self, input_ids: Int[Tensor, "B T"] | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> RewardOutput:
        """One score per row, unbounded, fp32; pooled as `config.pooling` says.

        Args:
            input_ids, kwargs: as in `states`; rows end in the reward token, padding on either side.
            attention_mask: [B T], 1 on real tokens.
        """
        out = self.states(input_ids, attention_mask, **kwargs)
        hidden = out.last_hidden_state
        assert hidden is not None
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        scores = self.scores(pool(hidden, attention_mask, self.config.pooling))
        return RewardOutput(logits=scores[:, None], last_hidden_state=hidden, past_key_values=out.past_key_values)

    def branch_scores(self, batch: Batch, features: Float[Tensor, "P D"] | None = None) -> Float[Tensor, " R"]:
        """One score per branch, tree by tree, as separate rows would get; fp32.

        Args:
            features: picture tokens of all trees, in reading order.
        """
        given = {**batch.inputs(), "features": features}
        if self.config.pooling == "last_token":
            return self.scores(self.model(**given, columns=batch.end_at)[0])
        return self.scores(batch.mean(self.model(**given)))

    def scores(self, pooled: Float[Tensor, "*R D"]) -> Float[Tensor, "*R"]:
        """The score head, in fp32, also under autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            return F.linear(pooled.float(), self.score.weight.float()).squeeze(-1)


def pool(hidden: Float[Tensor, "B T D"], attention_mask: Int[Tensor, "B T"], pooling: str) -> Float[Tensor, "B D"]:
    """The state of the last real token (official checkpoint), or the mean over all real ones (paper, section 3), which
    is fp32: half precision has no 1/n whose sum is 1."""
    if pooling == "last_token":
        last = attention_mask.long().cumsum(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = attention_mask.float()
    return torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True), hidden.float())
