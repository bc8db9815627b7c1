"""Attention over prefix groups in one packed row: a token attends to its prefix and its own response, to nothing else.

A prefix with its first response is a causal run of columns; so is each further response. What the runs lack, the
further responses attending to the prefix, is a second kernel call without a mask. Two softmaxes over disjoint keys
merge exactly by their log-sum-exps (Hydragen, arXiv:2402.05099), and the backward pass of flash attention is right for
either part if it is given the merged output and log-sum-exp (FlashAttention-2, arXiv:2307.08691, algorithm 2). Nothing
is of size T x T.

Letters in names: T tokens of a packed row, H query heads, G key/value heads, E channels of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "shared_prefix"
"""The name under Transformers' attention interface; another function may be registered in its place."""
BLOCK = 128
"""Tokens; FlexAttention skips blocks of so many queries and keys."""
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on another device; on its way to a GPU the host does not wait for it."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        return x.contiguous().pin_memory().to(device, non_blocking=True)
    return x.to(device)


class KernelCall(NamedTuple):
    """One kernel call: these columns look at those."""

    queries: slice
    keys: slice
    causal: bool
    """The same columns, none of which looks ahead; else all queries see all keys."""


@dataclass(frozen=True)
class PackedLayout:
    """Where groups stand in a packed row, one after another, each prefix before its responses."""

    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    """Tokens of the prefix and of each response, group by group."""

    @cached_property
    def groups(self) -> list[list[slice]]:
        """Columns of each group's prefix and responses."""
        groups = []
        start = 0
        for prefix, responses in self.shapes:
            group = []
            for size in (prefix, *responses):
                group.append(slice(start, start + size))
                start += size
            groups.append(group)
        return groups

    @cached_property
    def calls(self) -> list[KernelCall]:
        """Kernel calls that make up the attention; each response attends to itself before the prefix.

        >>> PackedLayout(((2, (3, 1)),)).calls[-1]
        KernelCall(queries=slice(5, 6, None), keys=slice(0, 2, None), causal=False)
        """
        calls = []
        for prefix, *responses in self.groups:
            first, *others = responses or [prefix]
            runs = [slice(prefix.start, first.stop), *others]
            calls += [KernelCall(run, run, True) for run in runs if run.stop > run.start]
            if others and prefix.stop > prefix.start:
                calls.append(KernelCall(slice(first.stop, others[-1].stop), prefix, False))
        return calls

    def numbers(self) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
        """Which group each token belongs to, and which of its responses; -1: the prefix."""
        parts = []
        for group, (prefix, responses) in enumerate(self.shapes):
            parts.append((group, -1, prefix))
            for response, size in enumerate(responses):
                parts.append((group, response, size))
        groups, numbers, sizes = torch.tensor(parts).long().reshape(-1, 3).unbind(1)
        return groups.repeat_interleave(sizes), numbers.repeat_interleave(sizes)

    def lengths(self) -> Int[Tensor, " T"]:
        """Tokens from the root of each token's group to the end of its longest response."""
        longest = [prefix + max(responses, default=0) for prefix, responses in self.shapes]
        group, _ = self.numbers()
        return torch.tensor(longest)[group]


class Cascade(torch.autograd.Function):
    """Flash attention by the kernel calls of a layout, merged; CPU kernels, which take grouped heads as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "1 H T E"],
        k: Float[Tensor, "1 G T E"],
        v: Float[Tensor, "1 G T E"],
        layout: PackedLayout,
        scaling: float,
    ) -> Float[Tensor, "1 H T E"]:
        """Every causal run on its own; then what responses see of their prefix is merged in."""
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for queries, keys, causal in layout.calls:
            of_call = q[:, :, queries], k[:, :, keys], v[:, :, keys]
            new = _FORWARD(*of_call, 0.0, causal, scale=scaling)
            # a response's own run comes before what it sees of its prefix
            if not causal:
                new = merge(out[:, :, queries], lse[:, :, queries], *new)
            out[:, :, queries], lse[:, :, queries] = new
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.calls, ctx.scaling = layout.calls, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "1 H T E"]) -> tuple[Tensor | None, ...]:
        """The sum of the calls' shares."""
        q, k, v, out, lse = ctx.saved_tensors
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for queries, keys, causal in ctx.calls:
            inputs = grad[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys]
            merged = out[:, :, queries], lse[:, :, queries]
            shares = _BACKWARD(*inputs, *merged, 0.0, causal, scale=ctx.scaling)
            # every column has one causal run, which comes first; the other shares add to it
            totals = of_q[:, :, queries], of_k[:, :, keys], of_v[:, :, keys]
            for total, share in zip(totals, shares, strict=True):
                total.copy_(share) if causal else total.add_(share)
        return of_q, of_k, of_v, None, None


def merge(
    out: Float[Tensor, "*n E"],
    lse: Float[Tensor, "*n"],
    other: Float[Tensor, "*n E"],
    other_lse: Float[Tensor, "*n"],
) -> tuple[Float[Tensor, "*n E"], Float[Tensor, "*n"]]:
    """Attention over two disjoint sets of keys, from the attention over either and its log-sum-exp of logits."""
    share = torch.sigmoid(other_lse - lse)[..., None].to(out.dtype)
    return torch.lerp(out, other, share), torch.logaddexp(lse, other_lse)


def cascade_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    layout: PackedLayout,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """For the CPU: `Cascade`."""
    return Cascade.apply(q, k, v, layout, scaling).transpose(1, 2)  # pyright: ignore[reportOptionalMemberAccess]


def segment_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    layout: PackedLayout,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """The same in plain calls, response after response: the reference, and for devices without a way of their own."""
    parts = []
    for prefix, *responses in layout.groups:
        pairs = [((prefix,), prefix), *(((prefix, response), response) for response in responses)]
        for seen, own in pairs:
            keys = torch.cat([k[:, :, columns] for columns in seen], 2)
            values = torch.cat([v[:, :, columns] for columns in seen], 2)
            size, total = own.stop - own.start, keys.shape[2]
            mask = torch.ones(size, total, dtype=torch.bool, device=q.device).tril(total - size)
            inputs: dict[str, Any] = {"attn_mask": mask, "scale": scaling, "enable_gqa": True}
            parts.append(F.scaled_dot_product_attention(q[:, :, own], keys, values, **inputs))
    return torch.cat(parts, 2).transpose(1, 2)


def flex_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    layout: PackedLayout,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """For CUDA: FlexAttention, which skips the blocks that nobody may look at.

    The row is filled up to whole blocks, so that one kernel serves rows of all lengths.
    """
    length = q.shape[2]
    q, k, v = (F.pad(x, (0, 0, 0, filled(length) - length)) for x in (q, k, v))
    mask = block_mask(layout, q.device)
    out = compiled(torch_flex_attention)(q, k, v, block_mask=mask, scale=scaling, enable_gqa=True)
    return out[:, :, :length].transpose(1, 2)


def filled(length: int) -> int:
    """Tokens of a row of whole blocks; two at least, for a size of 1 gets a kernel of its own.

    >>> filled(3), filled(257)
    (256, 384)
    """
    return BLOCK * max(2, -(-length // BLOCK))


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is called; for all sizes as soon as it has seen two."""
    return torch.compile(function)


@lru_cache(maxsize=4)
def block_mask(layout: PackedLayout, device: torch.device) -> BlockMask:
    """The layout for FlexAttention; its tensors serve training too, whoever asks first."""
    length = filled(sum(prefix + sum(responses) for prefix, responses in layout.shapes))
    with torch.inference_mode(False):
        return compiled(create_block_mask)(
            visible(layout, device), None, None, length, length, str(device)
        )


def visible(
    layout: PackedLayout, device: torch.device | str
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query may look at a key, as FlexAttention asks it: (row, head, query column, key column).

    What fills the row up is a group of its own.
    """
    numbers = (F.pad(x, (0, filled(len(x)) - len(x)), value=-1) for x in layout.numbers())
    group, response = (to_device(x, device) for x in numbers)
    return lambda row, head, query, key: (
        (query >= key)
        & (group[query] == group[key])
        & ((response[key] < 0) | (response[key] == response[query]))
    )


class Varlen(NamedTuple):
    """A layout as FlashAttention takes rows of several lengths.

    K keys of all runs, those of a prefix once per response. A run is a prefix with its first response, or a further
    response, which also attends to the prefix. It sees all its keys up to itself: what FlashAttention (2.1 and later)
    calls causal where there are more keys than queries.
    """

    keys: Int[Tensor, " K"]
    """Columns; the queries are the whole row in its order."""
    query_ends: Int[Tensor, " n"]
    """Where each run's queries end, after a 0; int32, as the kernel wants it."""
    key_ends: Int[Tensor, " n"]
    longest: tuple[int, int]
    """Queries and keys of a run at most."""


@lru_cache(maxsize=4)
def varlen(layout: PackedLayout, device: torch.device) -> Varlen:
    """The runs of a layout, on a device; they serve training too, whoever asks first."""
    num_queries: list[int] = []
    num_keys: list[int] = []
    columns: list[Tensor] = []

    def add_run(own: slice, seen: Sequence[slice]) -> None:
        if own.stop > own.start:
            spans = [torch.arange(span.start, span.stop) for span in seen]
            num_queries.append(own.stop - own.start)
            num_keys.append(sum(map(len, spans)))
            columns.extend(spans)

    for prefix, *responses in layout.groups:
        first, *others = responses or [prefix]
        run = slice(prefix.start, first.stop)
        add_run(run, [run])
        for response in others:
            add_run(response, [prefix, response])

    with torch.inference_mode(False):
        keys = to_device(torch.cat(columns), device)
        query_ends = torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32)
        key_ends = torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32)
        ends = to_device(query_ends, device), to_device(key_ends, device)
    return Varlen(keys, *ends, (max(num_queries), max(num_keys)))


def varlen_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    layout: PackedLayout,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """For CUDA and half precision, where the package flash-attn is installed: one call for the whole row."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    plan = varlen(layout, q.device)
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    ends, longest = (plan.query_ends, plan.key_ends), plan.longest
    out = flash_attn_varlen_func(
        q, k[plan.keys], v[plan.keys], *ends, *longest, softmax_scale=scaling, causal=True
    )
    return out[None]


class ResponseCache(DynamicCache):
    """Keys and values of answers in the making, beside those of their prompts, which are kept once for all answers."""

    def __init__(self, read: DynamicCache, layout: PackedLayout, count: int) -> None:
        """`read`: the cache of a packed row of prompts without responses; `count`: answers to each, in its order."""
        super().__init__()
        self.count = count
        sizes = [prefix for prefix, _ in layout.shapes]
        layers: Any = read.layers
        self.prompts = [(_rows(each.keys, sizes), _rows(each.values, sizes)) for each in layers]
        padding = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        mask = torch.zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None, None]
        self.prompt_mask = to_device(mask, self.prompts[0][0].device) if padding.any() else None

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B H 1 E"],
        k: Float[Tensor, "B G S E"],
        v: Float[Tensor, "B G S E"],
        scaling: float,
    ) -> Float[Tensor, "B 1 H E"]:
        """A new token of each answer looks at its own S tokens, and all answers to a prompt look at it together.

        Query heads that share a key head are rows of one product: no key is copied.
        """
        q = q.squeeze(2).unflatten(1, (k.shape[1], -1)) * scaling
        keys, values = self.prompts[layer]
        prompt_logits = self._together(q) @ keys.transpose(2, 3)
        own_logits = self._together(q @ k.transpose(2, 3))
        if self.prompt_mask is not None:
            prompt_logits = prompt_logits + self.prompt_mask

        # one softmax over the prompt's keys and the answer's own
        logits = torch.cat([prompt_logits, own_logits], -1)
        weights = logits.softmax(-1, torch.float32).to(v.dtype)
        prompt_weights, own_weights = weights.split([keys.shape[2], k.shape[2]], -1)
        out = self._apart(prompt_weights @ values) + self._apart(own_weights) @ v
        return out.flatten(1, 2)[:, None]

    def _together(self, x: Float[Tensor, "B G Q C"]) -> Float[Tensor, "S G N C"]:
        """Rows of all answers to a prompt, one after another."""
        return x.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3)

    def _apart(self, x: Float[Tensor, "S G N C"]) -> Float[Tensor, "B G Q C"]:
        return x.unflatten(2, (self.count, -1)).transpose(1, 2).flatten(0, 1)


def _rows(x: Float[Tensor, "1 G T E"], sizes: list[int]) -> Float[Tensor, "S G L E"]:
    """The prompts of a packed row as padded rows."""
    prompts = x[0].transpose(0, 1).split(sizes)
    return pad_sequence(list(prompts), batch_first=True).transpose(1, 2).contiguous()


def shared_prefix_attention(
    module: nn.Module,
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G S E"],
    v: Float[Tensor, "B G S E"],
    attention_mask: None,
    scaling: float,
    layout: PackedLayout | ResponseCache,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H E"], None]:
    """Under Transformers' attention interface: a packed row the device's way, or one more token of every answer."""
    if isinstance(layout, ResponseCache):
        return layout.attend(module.layer_idx, q, k, v, scaling), None  # pyright: ignore[reportArgumentType]
    return way_of(q, getattr(module, "kernel", "auto"))(q, k, v, layout, scaling), None


WAYS = {"sdpa": segment_attention, "flash_attention_2": varlen_attention, "flex": flex_attention}
"""The functions for a packed row, by the names of `ixc.models.kernels`."""


def way_of(
    q: Float[Tensor, "B H T E"], kernel: str = "auto"
) -> Callable[..., Float[Tensor, "1 T H E"]]:
    """The function for a packed row by its name, or of the queries' device; FlexAttention has no heads below 16
    channels."""
    if kernel != "auto":
        return WAYS[kernel]
    if q.device.type == "cuda" and q.shape[-1] >= 16:
        return flex_attention
    return cascade_attention if q.device.type == "cpu" else segment_attention


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prefix_attention)
