"""InternLM2 with Partial LoRA: a decoder whose linear layers add a low-rank path for image tokens only.

Letters in names: B rows, T tokens, D hidden channels, H query heads, G key/value heads, E channels of a head.
Parameter names are the official checkpoint's.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ixc.models.ixc25.arguments import refuse_unknown
from ixc.models.ixc25.configuration import IXCConfig
from ixc.packing.attention import NAME as SHARED_PREFIX
from ixc.packing.attention import PackedLayout, ResponseCache, to_device

Places = Int[Tensor, " P"] | Bool[Tensor, " BT"]
"""Which tokens of a batch come from an image: where these stand, or yes or no for each, where their number is not
known to the host."""


class Read(NamedTuple):
    """The columns of a packed row that a head reads; of the others the last layer computes nothing after attention."""

    columns: Int[Tensor, " R"]
    places: Bool[Tensor, " R"] | None
    """Which of them come from an image; None: the row has none."""


class LowRank(nn.Module):
    """A matrix of Partial LoRA. Not an `nn.Linear`: PEFT would put an adapter on it inside the layer that it adapts."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Float[Tensor, "*B i"]) -> Float[Tensor, "*B o"]:
        """`W x`."""
        return F.linear(x, self.weight)


class PLoRALinear(nn.Linear):
    """`x W^T`, plus `scale B A x` where a token comes from an image.

    Only image tokens take the low-rank path. Where they stand is found out once per forward pass, with a size that
    the host knows: no synchronisation. Source: InternLM-XComposer2, arXiv:2401.16420, section 3.2.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.Plora_A = LowRank(in_features, rank)
        self.Plora_B = LowRank(rank, out_features)
        self.scale = scale

    def forward(
        self, input: Float[Tensor, "B T i"], places: Places | None
    ) -> Float[Tensor, "B T o"]:
        """`places`: the image tokens among the B x T; None when there is no image."""
        rows = input.flatten(0, 1)
        out = F.linear(rows, self.weight)
        if places is not None and places.dtype == torch.bool:
            low_rank = self.Plora_B(self.Plora_A(rows)).masked_fill(~places[:, None], 0.0)
            out.add_(low_rank, alpha=self.scale)
        elif places is not None:
            low_rank = self.Plora_B(self.Plora_A(rows.index_select(0, places)))
            out.index_add_(0, places, low_rank, alpha=self.scale)
        return out.unflatten(0, input.shape[:2])


class RMSNorm(nn.Module):
    """Root-mean-square norm: in fp32, cast back, then scaled, as the official code does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Rows of unit root mean square, times the weight."""
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


def rope_tables(
    position_ids: Int[Tensor, "B T"],
    config: IXCConfig,
    dtype: torch.dtype,
    lengths: Int[Tensor, "#B T"] | None = None,
) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
    """Cosine and sine of the rotary angles, computed in fp32 (RoFormer, arXiv:2104.09864; NeoX halves).

    With `linear` scaling positions shrink by the factor; with `dynamic` (NTK) the base grows with the row's length,
    once that exceeds `max_position_embeddings`. Nothing is remembered: a short row after a long one is a short row.

    Args:
        lengths: tokens of the sequence that a token is part of; None: a row is one sequence.
    """
    rope, size = config.rope, config.head_dim
    positions, base = position_ids[:, None, :, None].float(), float(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        positions = positions / rope["factor"]
    if rope["rope_type"] == "dynamic":
        length = (
            positions.amax(2, keepdim=True) + 1 if lengths is None else lengths[:, None, :, None]
        )
        growth = rope["factor"] * length / config.max_position_embeddings - (rope["factor"] - 1)
        base = base * growth.clamp(min=1) ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    angles = positions / base**exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "B heads T E"], cos: Float[Tensor, "#B 1 T E"], sin: Float[Tensor, "#B 1 T E"]
) -> Float[Tensor, "B heads T E"]:
    """Turn each pair (i, i + E/2) by its position's angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def eager_attention(
    module: nn.Module,
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G S E"],
    v: Float[Tensor, "B G S E"],
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H E"], Float[Tensor, "B H T S"]]:
    """Attention in plain formulae, softmax in fp32, under Transformers' attention interface.

    Args:
        attention_mask: bool (True: may look) or added to the logits, [B 1 T S]; None: causal.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = q @ k.transpose(2, 3) * scaling
    if attention_mask is None:
        attention_mask = torch.ones_like(logits[:1, :1], dtype=torch.bool).tril(
            k.shape[2] - q.shape[2]
        )
    if attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    else:
        logits = logits + attention_mask
    weights = logits.softmax(-1, dtype=torch.float32).to(v.dtype)
    return (weights @ v).transpose(1, 2), weights


class Attention(nn.Module):
    """Grouped-query attention with the official interleaved `wqkv`.

    Rows of `wqkv` are G groups of (H/G queries, one key, one value) heads.
    """

    kernel = "auto"
    """What packed rows are computed with; see `ixc.models.kernels.use_attention`."""

    def __init__(self, config: IXCConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.wqkv = PLoRALinear(config.hidden_size, heads * config.head_dim, *config.plora("wqkv"))
        self.wo = PLoRALinear(config.hidden_size, config.hidden_size, *config.plora("wo"))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        places: Places | None,
        past_key_values: Cache | None = None,
        layout: PackedLayout | None = None,
        read: Read | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "B _ D"], Tensor | None]:
        """The output, and the attention weights where the implementation has them.

        Args:
            rope: cosine and sine, [B 1 T E].
            attention_mask: in the form that the configured implementation takes; None: causal.
            layout: x is a packed row of groups; the attention is then `ixc.packing.attention`'s.
            read: the only columns whose output is asked for; None: all.
        """
        groups = self.wqkv(x, places).unflatten(
            -1, (-1, self.num_key_value_groups + 2, self.head_dim)
        )
        q = groups[..., :-2, :].flatten(2, 3).transpose(1, 2)
        k, v = groups[..., -2, :].transpose(1, 2), groups[..., -1, :].transpose(1, 2)
        q, k = (rotate(x, *rope).to(v.dtype) for x in (q, k))  # under autocast the angles are wider
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        shared = past_key_values if isinstance(past_key_values, ResponseCache) else layout
        name = self.config._attn_implementation or "eager"
        if shared is not None:
            name, kwargs["layout"] = SHARED_PREFIX, shared
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        out, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, **kwargs)
        if read is not None:
            out, places = out[:, read.columns], read.places
        return self.wo(out.flatten(2), places), weights


class FeedForward(nn.Module):
    """SwiGLU; `w1` is the gate, `w3` goes up, `w2` down."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        wide, narrow = config.intermediate_size, config.hidden_size
        self.w1, self.w3 = (PLoRALinear(narrow, wide, *config.plora(name)) for name in ("w1", "w3"))
        self.w2 = PLoRALinear(wide, narrow, *config.plora("w2"))

    def forward(self, x: Float[Tensor, "B T D"], places: Places | None) -> Float[Tensor, "B T D"]:
        """`w2(silu(w1 x) * w3 x)`."""
        return self.w2(F.silu(self.w1(x, places)) * self.w3(x, places), places)


class DecoderLayer(GradientCheckpointingLayer):
    """A pre-norm layer."""

    def __init__(self, config: IXCConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer_idx)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        places: Places | None,
        past_key_values: Cache | None = None,
        read: Read | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "B _ D"]:
        """Attention, then feed-forward, each with its residual; arguments as in `Attention.forward`."""
        kwargs |= {"past_key_values": past_key_values, "read": read}
        attended = self.attention(self.attention_norm(x), rope, attention_mask, places, **kwargs)[0]
        if read is not None:
            x, places = x[:, read.columns], read.places
        x = x + attended
        return x + self.feed_forward(self.ffn_norm(x), places)


class InternLM2(nn.Module):
    """Embeddings, decoder layers and the final norm: the official `model.` prefix."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, config.pad_token_id
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        image_features: Float[Tensor, "P D"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        layout: PackedLayout | None = None,
        columns: Int[Tensor, " R"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "B _ D"]:
        """Hidden states after the final norm.

        Args:
            input_ids: `config.image_token_id` where an image token belongs.
            image_features: projected image tokens of the whole batch, in reading order.
            attention_mask: [B S], 1 on real tokens; or bool [B 1 T S], True where a query (T) may look at a key
                (S: cache and input); None: no padding. Queries never look ahead, unless the 4-D form says so.
            position_ids: default 0, 1, 2, ... after what the cache holds, padding on the left not counted.
            inputs_embeds: instead of `input_ids`, images in their places; no token then counts as an image's.
            layout: the input is a packed row of groups, `ixc.packing.layout.Batch`, which gives `position_ids` too.
            columns: those of a single row that are returned, of all others nothing after the last layer's attention is
                computed; None: all.
            kwargs: some of `ixc.models.ixc25.arguments.PASSED_ON`.

        Raises:
            TypeError: another keyword argument.
            WrongImages: not as many features as places for them.
            ValueError: an id that is not of the vocabulary.
        """
        refuse_unknown(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        x, places = (
            self.embed(input_ids, image_features)
            if input_ids is not None
            else (inputs_embeds, None)
        )
        assert x is not None
        if position_ids is None:
            position_ids = default_positions(x, attention_mask, past_key_values)
        padded = layout is None and not isinstance(past_key_values, ResponseCache)
        mask = self.mask(x, attention_mask, past_key_values, position_ids) if padded else None
        lengths = None
        if layout is not None and self.config.rope["rope_type"] == "dynamic":
            lengths = to_device(layout.lengths(), x.device)[None]
        rope = rope_tables(position_ids, self.config, x.dtype, lengths)
        kwargs |= {"past_key_values": past_key_values, "layout": layout}
        *before, last = self.layers
        for layer in before:
            x = layer(x, rope, mask, places, **kwargs)
        return self.norm(last(x, rope, mask, places, read=_read(x, columns, places), **kwargs))

    def mask(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor,
    ) -> Any:
        """The mask of padded rows, in the form that the configured implementation takes."""
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids)
        if (
            isinstance(mask, Tensor)
            and mask.dtype == torch.bool
            and self.config._attn_implementation == "sdpa"
        ):
            return torch.zeros_like(mask, dtype=x.dtype).masked_fill_(
                ~mask, torch.finfo(x.dtype).min
            )
        return mask

    def embed(
        self, input_ids: Int[Tensor, "B T"], image_features: Float[Tensor, "P D"] | None
    ) -> tuple[Float[Tensor, "B T D"], Int[Tensor, " P"] | None]:
        """Token embeddings with the images in their places, and these places among the B x T tokens.

        Raises:
            WrongImages: not as many features as places for them.
            ValueError: an id that is not of the vocabulary (on a GPU: CUDA's own error, which waits for nothing).
        """
        x, image = self._tokens(input_ids), (input_ids == self.config.image_token_id).flatten()
        _check_count(image, 0 if image_features is None else len(image_features))
        if image_features is None or len(image_features) == 0:
            return x, None
        places = torch.nonzero_static(image, size=len(image_features)).squeeze(1)
        return x.flatten(0, 1).index_copy(0, places, image_features.to(x)).view_as(x), places

    def _tokens(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        try:
            return self.tok_embeddings(input_ids)
        except IndexError as error:
            known = self.tok_embeddings.num_embeddings
            bad = input_ids[(input_ids < 0) | (input_ids >= known)][0].item()
            form = f"not among the {known} of this model's vocabulary; use the processor of the model's own folder"
            raise ValueError(f"input_ids: {bad}: {form}") from error


def _read(
    x: Float[Tensor, "B T D"], columns: Int[Tensor, " R"] | None, places: Int[Tensor, " P"] | None
) -> Read | None:
    if columns is None or places is None:
        return None if columns is None else Read(columns, None)
    images = torch.zeros(x.shape[1], dtype=torch.bool, device=places.device).index_fill_(
        0, places, True
    )
    return Read(columns, images[columns])


class WrongImages(ValueError):
    """Image tokens that do not fill their places."""


def _check_count(image: Bool[Tensor, " tokens"], given: int) -> None:
    """On a GPU the check is part of the stream: it waits for nothing."""
    form = f"{given} image tokens, but not as many places (image_token_id) for them in input_ids"
    if image.device.type == "cuda":
        torch.ops.aten._assert_async.msg(image.sum() == given, form)
    elif not image.is_meta and int(image.sum()) != given:
        raise WrongImages(
            f"{form}: {int(image.sum())}; build ids and images with one processor call"
        )


def default_positions(
    x: Tensor, attention_mask: Tensor | None, past: Cache | None
) -> Int[Tensor, "#B T"]:
    """0, 1, 2, ... over the real tokens of a row, after what the cache holds."""
    seen, new = past.get_seq_length() if past is not None else 0, x.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -new:]
    return torch.arange(seen, seen + new, device=x.device)[None]
