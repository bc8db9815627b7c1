"""Ways of attention over packed groups beside each other, at the 7B's sizes: forward, and forward with backward.

`flex` is what models use on a GPU. `varlen`, where the package flash-attn is installed, is one call of it, in which a
prefix is read again for each further response. `flash` are the passes of the CPU's way as two calls of PyTorch's flash
attention: all causal runs; then all further responses, which look at their prefixes. Both take half precision only. The
error is that of the output against fp64, relative, by the norm.

    python -m benchmarks.gpu.attention [--device cuda] [--tiny]
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.gpu.models import (
    Found,
    attempt,
    device_name,
    forget_memory,
    memory_gib,
    parser,
    share_of_peak,
    tell,
)
from ixc.packing.attention import (
    KernelCall,
    PackedLayout,
    cascade_attention,
    flex_attention,
    merge,
    segment_attention,
    to_device,
    varlen_attention,
)

SHAPES = {
    "2 pairs about pictures": ((4000, (300, 300)),) * 2,
    "16 answers": ((4000, (256,) * 16),),
    "32 pairs of texts": ((200, (120, 120)),) * 32,
}
TINY = {"tiny": ((20, (3, 4, 5)), (0, (2, 3)), (4, ()))}
Way = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]


class Call(NamedTuple):
    """One kernel call for several passes; Q queries and K keys of all of them."""

    queries: Int[Tensor, " Q"]
    """Columns."""
    keys: Int[Tensor, " K"]
    query_ends: Int[Tensor, " n"]
    """Where each pass's queries end, after a 0; int32, as the kernel wants it."""
    key_ends: Int[Tensor, " n"]
    longest: tuple[int, int]
    """Queries and keys of a pass at most."""
    causal: bool


@lru_cache(maxsize=4)
def calls(layout: PackedLayout, device: torch.device) -> list[Call]:
    """All causal runs, which are the whole row in order; then, if there are any, the looks at prefixes."""
    kinds = [[each for each in layout.calls if each.causal is causal] for causal in (True, False)]
    with torch.inference_mode(False):
        return [_call(calls, device) for calls in kinds if calls]


def _call(calls: Sequence[KernelCall], device: torch.device) -> Call:
    queries, keys = [each.queries for each in calls], [each.keys for each in calls]
    ends = [
        to_device(torch.tensor(_ends(spans), dtype=torch.int32), device)
        for spans in (queries, keys)
    ]
    columns = [
        to_device(torch.cat([torch.arange(x.start, x.stop) for x in spans]), device)
        for spans in (queries, keys)
    ]
    longest = [max(span.stop - span.start for span in spans) for spans in (queries, keys)]
    return Call(columns[0], columns[1], ends[0], ends[1], (longest[0], longest[1]), calls[0].causal)


def _ends(spans: Sequence[slice]) -> list[int]:
    return list(accumulate((span.stop - span.start for span in spans), initial=0))


def forward_kernel(
    q: Float[Tensor, "Q H E"],
    k: Float[Tensor, "K G E"],
    v: Float[Tensor, "K G E"],
    call: Call,
    scaling: float,
) -> tuple[Tensor, ...]:
    """Output [Q H E] and log-sum-exp [H Q], and two tensors that the backward kernel asks for."""
    ends, longest = (call.query_ends, call.key_ends), call.longest
    return torch.ops.aten._flash_attention_forward(
        q, k, v, *ends, *longest, 0.0, call.causal, False, scale=scaling
    )[:4]


def backward_kernel(
    given: Sequence[Tensor], call: Call, scaling: float, asked: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v; `given`: those of the output, q, k, v, output, log-sum-exp."""
    ends, longest = (call.query_ends, call.key_ends), call.longest
    return torch.ops.aten._flash_attention_backward(
        *given, *ends, *longest, 0.0, call.causal, *asked, scale=scaling
    )


class Flash(torch.autograd.Function):
    """As `ixc.packing.attention.Cascade`, of which every kind of pass is one call."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "T H E"],
        k: Float[Tensor, "T G E"],
        v: Float[Tensor, "T G E"],
        calls: list[Call],
        scaling: float,
    ) -> Float[Tensor, "T H E"]:
        """The runs; then what further responses see of their prefixes is merged in."""
        runs, *looks = calls
        out, lse, *asked = forward_kernel(q, k, v, runs, scaling)
        ctx.asked = [asked]
        for call in looks:
            new, new_lse, *asked = forward_kernel(
                q[call.queries], k[call.keys], v[call.keys], call, scaling
            )
            merged, merged_lse = merge(out[call.queries], lse[:, call.queries].T, new, new_lse.T)
            out.index_copy_(0, call.queries, merged)
            lse.index_copy_(1, call.queries, merged_lse.T)
            ctx.asked.append(asked)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.calls, ctx.scaling = calls, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "T H E"]) -> tuple[Tensor | None, ...]:
        """The sum of the calls' shares."""
        q, k, v, out, lse = ctx.saved_tensors
        grad, (runs, *looks), (asked, *more) = grad.contiguous(), ctx.calls, ctx.asked
        totals = backward_kernel((grad, q, k, v, out, lse), runs, ctx.scaling, asked)
        for call, asked_there in zip(looks, more, strict=True):
            queries, keys = call.queries, call.keys
            given = grad[queries], q[queries], k[keys], v[keys], out[queries], lse[:, queries]
            shares = backward_kernel(given, call, ctx.scaling, asked_there)
            for total, at, share in zip(totals, (queries, keys, keys), shares, strict=True):
                total.index_add_(0, at, share)
        return *totals, None, None


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scaling: float
) -> Tensor:
    """For CUDA and half precision; arguments and result as of `ixc.packing.attention.flex_attention`."""
    rows = (x[0].transpose(0, 1) for x in (q, k, v))
    return Flash.apply(*rows, calls(layout, q.device), scaling)[None]  # pyright: ignore[reportOptionalSubscript]


WAYS: dict[str, dict[str, Way]] = {
    "cuda": {
        "flex": flex_attention,
        "flash": flash_attention,
        **({"varlen": varlen_attention} if find_spec("flash_attn") else {}),
    },
    "cpu": {"cascade": cascade_attention, "segment": segment_attention},
}


def operations(layout: PackedLayout, heads: int, channels: int) -> int:
    """Of the forward pass: two products, 2 operations per channel, head, and token that another one looks at."""
    sizes = [
        (p.queries.stop - p.queries.start, p.keys.stop - p.keys.start, p.causal)
        for p in layout.calls
    ]
    return (
        4
        * heads
        * channels
        * sum(n * (n + 1) // 2 if causal else n * seen for n, seen, causal in sizes)
    )


def seconds_of(compute: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call, the median of several that each wait for the device."""
    taken = []
    for _ in range(repeats + 2):  # two to compile and warm up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken[2:])[repeats // 2]


def measure(
    way: Way,
    layout: PackedLayout,
    device: torch.device,
    heads: tuple[int, int, int],
    repeats: int = 20,
) -> Found:
    """`heads`: query heads, key heads, channels."""
    generator, (many, few, channels) = torch.Generator(device).manual_seed(0), heads
    length = len(layout.numbers()[0])

    def draw(count: int) -> Tensor:
        drawn = torch.randn(1, count, length, channels, generator=generator, device=device)
        return drawn.to(torch.bfloat16).requires_grad_()

    q, k, v = draw(many), draw(few), draw(few)
    scaling, weights = (
        channels**-0.5,
        torch.randn(1, length, many, channels, device=device, dtype=torch.bfloat16),
    )

    def learn() -> None:
        torch.autograd.grad(way(q, k, v, layout, scaling), (q, k, v), weights)

    with torch.no_grad():
        forward = seconds_of(lambda: way(q, k, v, layout, scaling), device, repeats)
        out = way(q, k, v, layout, scaling)
        exact = segment_attention(q.double(), k.double(), v.double(), layout, scaling)
    forget_memory(device)
    both = seconds_of(learn, device, repeats)
    needed = operations(layout, many, channels)
    return {
        "device": device_name(device),
        "tokens": length,
        "forward_s": forward,
        "forward_share_of_peak": share_of_peak(needed, forward, device),
        "training_s": both,
        "training_share_of_peak": share_of_peak(3 * needed, both, device),
        "memory_gib": memory_gib(device),
        "error": float((out.double() - exact).norm() / exact.norm()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """A line per shape and way."""
    given = parser(__doc__).parse_args(arguments)
    device, shapes = torch.device(given.device), TINY if given.tiny else SHAPES
    heads = (4, 2, 16) if given.tiny else (32, 8, 128)
    for (shape, groups), (name, way) in product(shapes.items(), WAYS[device.type].items()):
        found = attempt(
            lambda way=way, groups=groups: measure(way, PackedLayout(groups), device, heads)
        )
        tell(shape=shape, way=name, **found)


if __name__ == "__main__":
    main()
