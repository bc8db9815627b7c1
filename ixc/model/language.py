"""InternLM2 with Partial LoRA: a decoder whose linear layers add a low-rank path for picture tokens only.

Letters in names: B rows, T tokens, D hidden channels, H query heads, G key/value heads, E channels of a head.
Parameter names are the official checkpoint's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ixc.model.configuration import IXCConfig


class PLoRALinear(nn.Linear):
    """`x W^T`, plus `B A x` where a token comes from a picture (scale 1).

    Every token takes the low-rank path and the mask zeroes it: no gather, no host synchronisation.
    Source: InternLM-XComposer2, arXiv:2401.16420, section 3.2.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.Plora_A = nn.Linear(in_features, rank, bias=False)
        self.Plora_B = nn.Linear(rank, out_features, bias=False)

    def forward(self, input: Float[Tensor, "B T i"], im_mask: Float[Tensor, "B T 1"] | None) -> Float[Tensor, "B T o"]:
        """`im_mask`: 1 on picture tokens, 0 elsewhere; None when there is no picture."""
        out = F.linear(input, self.weight)
        return out if im_mask is None else out + self.Plora_B(self.Plora_A(input) * im_mask)


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
    position_ids: Int[Tensor, "B T"], head_dim: int, theta: float | int, dtype: torch.dtype
) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
    """Cosine and sine of the rotary angles, computed in fp32 (RoFormer, arXiv:2104.09864; NeoX halves)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids[:, None, :, None].float() / theta**exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "B heads T E"], cos: Float[Tensor, "B 1 T E"], sin: Float[Tensor, "B 1 T E"]
) -> Float[Tensor, "B heads T E"]:
    """Turn each pair (i, i + E/2) by its position's angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    """Grouped-query attention with the official interleaved `wqkv`.

    Rows of `wqkv` are G groups of (H/G queries, one key, one value) heads.
    """

    def __init__(self, config: IXCConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.wqkv = PLoRALinear(config.hidden_size, heads * config.head_dim, config.plora_rank)
        self.wo = PLoRALinear(config.hidden_size, config.hidden_size, config.plora_rank)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor],
        mask: Float[Tensor, "B 1 T S"] | None,
        im_mask: Float[Tensor, "B T 1"] | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> Float[Tensor, "B T D"]:
        """`mask` is added to the logits; None means causal."""
        groups = self.wqkv(x, im_mask).unflatten(-1, (-1, self.num_key_value_groups + 2, self.head_dim))
        q = groups[..., :-2, :].flatten(2, 3).transpose(1, 2)
        k, v = groups[..., -2, :].transpose(1, 2), groups[..., -1, :].transpose(1, 2)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation or "sdpa"]
        out, _ = attend(self, q, k, v, mask, scaling=self.scaling, **kwargs)
        return self.wo(out.flatten(2), im_mask)


class FeedForward(nn.Module):
    """SwiGLU; `w1` is the gate, `w3` goes up, `w2` down."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        wide, narrow, rank = config.intermediate_size, config.hidden_size, config.plora_rank
        self.w1, self.w3 = PLoRALinear(narrow, wide, rank), PLoRALinear(narrow, wide, rank)
        self.w2 = PLoRALinear(wide, narrow, rank)

    def forward(self, x: Float[Tensor, "B T D"], im_mask: Float[Tensor, "B T 1"] | None) -> Float[Tensor, "B T D"]:
        """`w2(silu(w1 x) * w3 x)`."""
        return self.w2(F.silu(self.w1(x, im_mask)) * self.w3(x, im_mask), im_mask)


class DecoderLayer(nn.Module):
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
        mask: Float[Tensor, "B 1 T S"] | None,
        im_mask: Float[Tensor, "B T 1"] | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> Float[Tensor, "B T D"]:
        """Attention, then feed-forward, each with its residual."""
        x = x + self.attention(self.attention_norm(x), rope, mask, im_mask, cache, **kwargs)
        return x + self.feed_forward(self.ffn_norm(x), im_mask)


class InternLM2(nn.Module):
    """Embeddings, decoder layers and the final norm: the official `model.` prefix."""

    def __init__(self, config: IXCConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        features: Float[Tensor, "P D"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B 1 T S"] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the final norm.

        Args:
            input_ids: `config.image_token_id` where a picture token belongs.
            features: projected picture tokens of the whole batch, in reading order.
            position_ids: default 0, 1, 2, ... after what the cache holds.
            mask: True where a query (T) may look at a key (S: cache and input); None: causal.
        """
        image = input_ids == self.config.image_token_id
        x, im_mask = self.embed(input_ids, image, features)
        seen, new = cache.get_seq_length() if cache is not None else 0, x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(seen, seen + new, device=x.device).expand(x.shape[:2])
        if mask is None and seen and new > 1:  # SDPA's own causal mask would start at the cache's first key
            mask = torch.ones(new, seen + new, dtype=torch.bool, device=x.device).tril(seen).expand(len(x), 1, -1, -1)
        rope = rope_tables(position_ids, self.config.head_dim, self.config.rope_theta, x.dtype)
        additive = None if mask is None else torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, float("-inf"))
        for layer in self.layers:
            x = layer(x, rope, additive, im_mask, cache, **kwargs)
        return self.norm(x)

    def embed(
        self, input_ids: Int[Tensor, "B T"], image: Bool[Tensor, "B T"], features: Float[Tensor, "P D"] | None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T 1"] | None]:
        """Token embeddings with the pictures in their places, and 1 where a picture token is."""
        x = self.tok_embeddings(input_ids)
        if features is None or len(features) == 0:
            return x, None
        mask = image.unsqueeze(-1)
        return x.masked_scatter(mask, features.to(x.dtype)), mask.to(x.dtype)
