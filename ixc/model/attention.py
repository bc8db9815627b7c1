"""Attention over trees in one packed row: every token looks at its prefix and its own branch, nothing at other trees.

A prefix with its first branch is a causal run of columns; so is each further branch. What the runs lack, the further
branches looking at the prefix, is a second pass without a mask. Two softmaxes over disjoint keys merge exactly by their
log-sum-exps (Hydragen, arXiv:2402.05099), and the backward pass of flash attention is right for either part if it is
given the merged output and log-sum-exp (FlashAttention-2, arXiv:2307.08691, algorithm 2). Nothing is of size T x T.

Letters in names: T tokens of a packed row, H query heads, G key/value heads, E channels of a head, n rows of L columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "shared_prefix"
"""The name under Transformers' attention interface; another function may be registered in its place."""
STEP = 64
"""Spans whose lengths round up to the same multiple of this share a kernel call, padded to the longest of them."""
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """Columns of the packed row, the last one excluded."""

    start: int
    stop: int


class Rows:
    """Spans of a packed row, side by side as rows of one length; shorter ones repeat their last column as padding."""

    def __init__(self, spans: Sequence[Span]) -> None:
        start, stop = torch.tensor(spans).unbind(1)
        at = torch.arange(int((stop - start).max()))
        real = at < (stop - start)[:, None]
        self.columns: Int[Tensor, "n L"] = torch.minimum(start[:, None] + at, stop[:, None] - 1)
        self.span = spans[0] if len(spans) == 1 else None
        self.padding = None if real.all() else ~real
        self.real = real.flatten().nonzero().squeeze(1)

    def take(self, x: Float[Tensor, "T *c"], padding: float | None = None) -> Float[Tensor, "n L *c"]:
        """The rows of `x`; with `padding` in place of repeated columns, if given."""
        if self.span is not None:
            return x[slice(*self.span)][None]
        rows = x.index_select(0, self.columns.flatten())
        if padding is not None and self.padding is not None:
            rows[self.padding.flatten()] = padding
        return rows.unflatten(0, self.columns.shape)

    def put(self, x: Float[Tensor, "T *c"], rows: Float[Tensor, "n L *c"]) -> None:
        """Overwrite the columns of `x` in place; padding is dropped."""
        if self.span is not None:
            x[slice(*self.span)] = rows[0]
        elif self.padding is None:
            x.index_copy_(0, self.columns.flatten(), rows.flatten(0, 1))
        else:
            x.index_copy_(0, self.columns.flatten()[self.real], rows.flatten(0, 1)[self.real])

    def add(self, x: Float[Tensor, "T *c"], rows: Float[Tensor, "n L *c"]) -> None:
        """Add to the columns of `x` in place; rows are 0 where they are padding."""
        if self.span is not None:
            x[slice(*self.span)] += rows[0]
        else:
            x.index_add_(0, self.columns.flatten(), rows.flatten(0, 1))

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "n 1 1 L"] | None:
        """To be added to logits over these rows as keys; None: all are real."""
        if self.padding is None:
            return None
        return torch.zeros(self.padding.shape, dtype=dtype).masked_fill_(self.padding, -torch.inf)[:, None, None]


class Pass(NamedTuple):
    """One kernel call: these queries look at these keys."""

    queries: Rows
    keys: Rows
    causal: bool
    """Queries and keys are the same columns; else queries see all the keys."""


@dataclass(frozen=True)
class Forest:
    """Where trees stand in a packed row, one after another, each prefix before its branches."""

    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    """Tokens of the prefix and of each branch, tree by tree."""

    @cached_property
    def trees(self) -> list[list[Span]]:
        """Per tree its prefix and its branches."""
        sizes = [size for prefix, branches in self.shapes for size in (prefix, *branches)]
        spans = iter([Span(*ends) for ends in pairwise(accumulate(sizes, initial=0))])
        return [[next(spans) for _ in range(1 + len(branches))] for _, branches in self.shapes]

    @cached_property
    def passes(self) -> list[Pass]:
        """Kernel calls that make up the attention: first every token among its run, then branches to their prefix."""
        runs = [run for spans in self.trees for run in _runs(spans)]
        crossings = [(Span(spans[2].start, spans[-1].stop), spans[0]) for spans in self.trees if len(spans) > 2]
        alike = [Rows([run for [run] in group]) for group in _alike([[run] for run in runs])]
        across = [
            Pass(*(Rows(spans) for spans in zip(*group, strict=True)), causal=False) for group in _alike(crossings)
        ]
        return [*(Pass(rows, rows, True) for rows in alike), *across]

    def numbers(self) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
        """Which tree each token belongs to, and which of its branches; -1: the prefix."""
        at = [(n, b - 1, stop - start) for n, tree in enumerate(self.trees) for b, (start, stop) in enumerate(tree)]
        tree, branch, size = torch.tensor(at).reshape(-1, 3).unbind(1)
        return tree.repeat_interleave(size), branch.repeat_interleave(size)

    def lengths(self) -> Int[Tensor, " T"]:
        """Tokens from the root of each token's tree to the end of its longest branch."""
        longest = torch.tensor([prefix + max(branches, default=0) for prefix, branches in self.shapes])
        return longest[self.numbers()[0]]


def _runs(spans: Sequence[Span]) -> list[Span]:
    """The causal runs of a tree: the first branch just goes on where the prefix ends."""
    first, *others = [Span(spans[0].start, spans[min(1, len(spans) - 1)].stop), *spans[2:]]
    return [run for run in (first, *others) if run.stop > run.start]


def _alike(spans: Sequence[Sequence[Span]]) -> list[list[Sequence[Span]]]:
    """Groups of (queries and keys) whose lengths round up to the same multiples of `STEP`; empty ones are left out."""

    def size(some: Sequence[Span]) -> list[int]:
        return [-(-(stop - start) // STEP) for start, stop in some]

    filled = sorted((some for some in spans if all(size(some))), key=size)
    return [list(group) for _, group in groupby(filled, size)]


class Cascade(torch.autograd.Function):
    """Flash attention by the passes of a forest, merged; CPU kernels, which take grouped heads as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "T H E"],
        k: Float[Tensor, "T G E"],
        v: Float[Tensor, "T G E"],
        forest: Forest,
        scaling: float,
    ) -> Float[Tensor, "T H E"]:
        """Every causal run on its own; then what the other passes see is merged in."""
        out = torch.zeros_like(q)
        lse = torch.zeros(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for queries, keys, causal in forest.passes:
            given = (x.transpose(1, 2) for x in (queries.take(q), keys.take(k), keys.take(v)))
            new = _FORWARD(*given, 0.0, causal, attn_mask=None if causal else keys.mask(q.dtype), scale=scaling)
            new_out, new_lse = (x.transpose(1, 2) for x in new)
            if not causal:
                new_out, new_lse = merge(queries.take(out), queries.take(lse), new_out, new_lse)
            queries.put(out, new_out)
            queries.put(lse, new_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.forest, ctx.scaling = forest, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "T H E"]) -> tuple[Tensor | None, ...]:
        """Each pass's share. Padding has no gradient, and an infinite log-sum-exp: it looks at nothing."""
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for queries, keys, causal in ctx.forest.passes:
            given = (queries.take(grad, padding=0.0), queries.take(q), keys.take(k), keys.take(v), queries.take(out))
            rows = [x.transpose(1, 2) for x in (*given, queries.take(lse, padding=torch.inf))]
            mask = None if causal else keys.mask(q.dtype)
            new = _BACKWARD(*rows, 0.0, causal, attn_mask=mask, scale=ctx.scaling)
            for place, total, share in zip((queries, keys, keys), grads, new, strict=True):
                place.add(total, share.transpose(1, 2))
        return *grads, None, None


def merge(
    out: Float[Tensor, "*n E"], lse: Float[Tensor, "*n"], other: Float[Tensor, "*n E"], other_lse: Float[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n E"], Float[Tensor, "*n"]]:
    """Attention over two disjoint sets of keys, from the attention over either and its log-sum-exp of logits."""
    share = torch.sigmoid(other_lse - lse)[..., None].to(out.dtype)
    return torch.lerp(out, other, share), torch.logaddexp(lse, other_lse)


def cascade_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    forest: Forest,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """For the CPU: `Cascade`."""
    return Cascade.apply(*(x[0].transpose(0, 1) for x in (q, k, v)), forest, scaling)[None]  # pyright: ignore


def segment_attention(
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    forest: Forest,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """The same in plain calls, branch after branch: the reference, and the way of devices without one of their own."""
    parts = []
    for prefix, *others in forest.trees:
        for run in _runs([prefix, *others]):
            own = torch.arange(*run, device=q.device)
            seen = own if run.start == prefix.start else torch.cat([torch.arange(*prefix, device=q.device), own])
            mask = torch.ones(len(own), len(seen), dtype=torch.bool, device=q.device).tril(len(seen) - len(own))
            rows = (q[:, :, own], k[:, :, seen], v[:, :, seen])
            parts.append(F.scaled_dot_product_attention(*rows, attn_mask=mask, scale=scaling, enable_gqa=True))
    return torch.cat(parts, 2).transpose(1, 2)


def flex_attention(
    module: nn.Module,
    q: Float[Tensor, "1 H T E"],
    k: Float[Tensor, "1 G T E"],
    v: Float[Tensor, "1 G T E"],
    forest: Forest,
    scaling: float,
) -> Float[Tensor, "1 T H E"]:
    """For CUDA: FlexAttention, compiled by Transformers, which skips the blocks that nobody may look at."""
    return ALL_ATTENTION_FUNCTIONS["flex_attention"](module, q, k, v, block_mask(forest, q.device), scaling=scaling)[0]


@lru_cache(maxsize=4)
def block_mask(forest: Forest, device: torch.device) -> BlockMask:
    """The forest for FlexAttention."""
    length = sum(prefix + sum(branches) for prefix, branches in forest.shapes)
    return create_block_mask(visible(forest, device), None, None, length, length, device, _compile=True)


def visible(forest: Forest, device: torch.device | str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query may look at a key, as FlexAttention asks it: (row, head, query column, key column)."""
    tree, branch = (x.to(device) for x in forest.numbers())
    return lambda row, head, query, key: (
        (query >= key) & (tree[query] == tree[key]) & ((branch[key] < 0) | (branch[key] == branch[query]))
    )


class Branches(DynamicCache):
    """Keys and values of answers in the making, beside those of their prompts, which are kept once for all answers."""

    def __init__(self, read: DynamicCache, forest: Forest, count: int) -> None:
        """`read`: the cache of a packed row of prompts without branches; `count`: answers to each, in its order."""
        super().__init__()
        prompts, self.count = Rows([prompt for prompt, *_ in forest.trees]), count
        columns = [[x[0].transpose(0, 1) for x in (layer.keys, layer.values)] for layer in read.layers]  # pyright: ignore
        self.prompts = [[prompts.take(x).transpose(1, 2).contiguous() for x in layer] for layer in columns]
        self.prompt_mask = prompts.mask(columns[0][0].dtype)

    def attend(
        self, layer: int, q: Float[Tensor, "B H 1 E"], k: Float[Tensor, "B G S E"], v: Float[Tensor, "B G S E"]
    ) -> Float[Tensor, "B 1 H E"]:
        """A new token of each answer looks at its own S tokens, and all answers to a prompt look at it together.

        Query heads that share a key head are rows of one product: no key is copied.
        """
        q = q.squeeze(2).unflatten(1, (k.shape[1], -1))
        asked = q.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3)
        seen = look(asked, *self.prompts[layer], self.prompt_mask)
        out, lse = (x.unflatten(2, (self.count, -1)).transpose(1, 2).flatten(0, 1) for x in seen)
        return merge(*look(q, k, v), out, lse)[0].flatten(1, 2)[:, None]


def look(
    q: Float[Tensor, "B G Q E"],
    k: Float[Tensor, "B G S E"],
    v: Float[Tensor, "B G S E"],
    mask: Float[Tensor, "B 1 1 S"] | None = None,
) -> tuple[Float[Tensor, "B G Q E"], Float[Tensor, "B G Q"]]:
    """Attention of a few queries, in plain formulae, and the log-sum-exp of its logits; softmax in fp32."""
    logits = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).float()
    logits = logits if mask is None else logits + mask
    lse = logits.logsumexp(-1)
    return (logits - lse[..., None]).exp().to(v.dtype) @ v, lse


def shared_prefix_attention(
    module: nn.Module,
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G S E"],
    v: Float[Tensor, "B G S E"],
    attention_mask: None,
    scaling: float,
    layout: Forest | Branches,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H E"], None]:
    """Under Transformers' attention interface: a packed row the device's way, or one more token of every answer."""
    if isinstance(layout, Branches):
        return layout.attend(module.layer_idx, q, k, v), None  # pyright: ignore[reportArgumentType]
    if q.device.type == "cuda":
        return flex_attention(module, q, k, v, layout, scaling), None
    attend = cascade_attention if q.device.type == "cpu" else segment_attention
    return attend(q, k, v, layout, scaling), None


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prefix_attention)
