"""Attention over packed trees: each way of computing it against the dense mask, and rewards against separate rows."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ixc.engine.losses import bradley_terry_loss
from ixc.models.ixc25 import IXCForRewardModel
from ixc.packing import attention
from ixc.packing.attention import (
    NAME,
    PackedLayout,
    ResponseCache,
    block_mask,
    cascade_attention,
    flex_attention,
    merge,
    segment_attention,
    visible,
)
from ixc.packing.layout import PrefixGroup, collate

Ways = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]
Shapes = tuple[tuple[int, tuple[int, ...]], ...]
SIZES = st.one_of(st.integers(1, 5), st.integers(60, 140))
SHAPES = st.lists(
    st.tuples(st.one_of(st.just(0), SIZES), st.lists(SIZES, min_size=1, max_size=4).map(tuple)),
    min_size=1,
    max_size=4,
).map(tuple)
"""(prefix, responses) of each tree, in tokens; some prefixes are empty."""
HEADS, GROUPS, CHANNELS = 4, 2, 8


def dense(layout: PackedLayout) -> Tensor:
    """Who sees whom, T x T: the definition."""
    group, response = layout.numbers()
    before = torch.ones(len(group), len(group), dtype=torch.bool).tril()
    return before & (group[:, None] == group) & ((response < 0) | (response[:, None] == response))


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scaling: float
) -> Tensor:
    given: dict[str, Any] = {"attn_mask": dense(layout), "scale": scaling, "enable_gqa": True}
    return F.scaled_dot_product_attention(q, k, v, **given).transpose(1, 2)


def inputs(
    layout: PackedLayout, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = len(layout.numbers()[0])

    def draw(heads: int) -> Tensor:
        return (
            torch.randn(1, heads, length, CHANNELS, generator=generator).to(dtype).requires_grad_()
        )

    return draw(HEADS), draw(GROUPS), draw(GROUPS)


def out_and_gradients(way: Ways, layout: PackedLayout) -> list[Tensor]:
    q, k, v = inputs(layout)
    out = way(q, k, v, layout, 0.3)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * weights).sum(), (q, k, v))]


@pytest.mark.parametrize("way", [cascade_attention, segment_attention])
@settings(max_examples=40, deadline=None, database=None)
@given(SHAPES)
@example(((3, ()), (4, ())))  # prompts without answers
@example(((9, (2, 0, 3)),))  # an empty response
def test_every_way_is_the_dense_mask(way: Ways, shapes: Shapes):
    got, wanted = (out_and_gradients(some, PackedLayout(shapes)) for some in (way, dense_attention))
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None, database=None)
@given(SHAPES)
def test_flex_attention_is_asked_for_the_dense_mask(shapes: Shapes):
    layout = PackedLayout(shapes)
    wanted = dense(layout)
    got = create_mask(visible(layout, "cpu"), None, None, *wanted.shape, device="cpu")[0, 0]
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("shapes", [((3, (2, 4)),), ((70, (30, 40, 5)), (90, (8, 30)), (20, ()))])
@torch.no_grad()
def test_what_fills_the_last_block_of_flex_attention_changes_nothing(
    shapes: Shapes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "compiled", lambda function: function)
    block_mask.cache_clear()
    q, k, v = inputs(PackedLayout(shapes))
    got, wanted = (
        way(q, k, v, PackedLayout(shapes), 0.3) for way in (flex_attention, dense_attention)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_mask_first_made_for_scoring_serves_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "compiled", lambda function: function)
    block_mask.cache_clear()
    with torch.inference_mode():
        mask = block_mask(PackedLayout(((3, (2, 4)),)), torch.device("cpu"))
    seen = [cell.cell_contents for cell in mask.mask_mod.__closure__ or ()]
    assert not any(x.is_inference() for x in (mask.kv_indices, *seen)) and len(seen) == 2
    assert block_mask(PackedLayout(((3, (2, 4)),)), torch.device("cpu")) is mask


@torch.no_grad()
def test_half_precision_is_as_exact_as_itself():
    layout = PackedLayout(((70, (30, 40, 5)), (90, (8, 9))))
    q, k, v = inputs(layout, torch.bfloat16)
    got, wanted = cascade_attention(q, k, v, layout, 0.3), dense_attention(q, k, v, layout, 0.3)
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


def test_two_parts_merge_by_hand():
    # logits 0 and ln 3: weights 1/4 and 3/4 of the values 8 and 4; the sum of the exponentials is 4
    merged = merge(
        torch.tensor([8.0]), torch.tensor(0.0), torch.tensor([4.0]), torch.tensor(3.0).log()
    )
    torch.testing.assert_close(merged, (torch.tensor([5.0]), torch.tensor(4.0).log()))


WORDS = st.lists(st.integers(20, 200), min_size=1, max_size=5) | st.integers(64, 90).map(
    lambda n: [33, 44] * n
)
TREES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=2, max_size=4)), min_size=1, max_size=3)


def separately(model: IXCForRewardModel, groups: list[PrefixGroup]) -> Tensor:
    """Rewards, each sequence alone in its row."""
    rows = [group.prompt.ids + response for group in groups for response in group.responses]
    return torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows])


def packed(model: IXCForRewardModel, groups: list[PrefixGroup]) -> Tensor:
    return model.response_scores(collate(groups))


def loss_of(rewards: Tensor, groups: list[PrefixGroup]) -> Tensor:
    """Bradley-Terry over all pairs of every tree's answers, and centering: equal answers too have gradients."""
    rows = rewards.split([len(group.responses) for group in groups])
    won, lost = zip(*[pair for row in rows for pair in combinations(row, 2)], strict=True)
    return bradley_terry_loss(torch.stack(won), torch.stack(lost)) + (rewards - 1).square().mean()


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@pytest.mark.parametrize("checkpointed", [False, True])
@settings(max_examples=6, deadline=None, database=None)
@given(TREES)
def test_rewards_and_gradients_are_those_of_separate_rows(
    pooling: str, checkpointed: bool, groups: list[tuple[list[int], list[list[int]]]]
):
    model, layout = tiny.reward(pooling=pooling).train(), [PrefixGroup(*group) for group in groups]
    if checkpointed:
        model.gradient_checkpointing_enable()
    numbers = []
    for way in (packed, separately):
        model.zero_grad()
        rewards = way(model, layout)
        loss_of(rewards, layout).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        numbers.append((rewards.detach(), gradients.clone()))
    (rewards, gradients), (wanted, plain) = numbers
    torch.testing.assert_close(rewards, wanted, rtol=0, atol=1e-5)
    assert (gradients - plain).norm() <= 1e-4 * plain.norm() and plain.norm() > 0


def test_an_attention_of_one_s_own_can_be_registered(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def own(
        module: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: None,
        scaling: float,
        layout: PackedLayout,
        **rest: Any,
    ):
        seen.append(layout)
        return segment_attention(q, k, v, layout, scaling), None

    model, groups = tiny.reward(), [PrefixGroup([1, 30], [[40], [41, 42]])]
    wanted = packed(model, groups)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, NAME, own)  # pyright: ignore
    torch.testing.assert_close(packed(model, groups), wanted)
    assert seen == [PackedLayout(((2, (1, 2)),))] * 2


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_answers_in_the_making_see_their_prompt_and_themselves(count: int):
    model, prompts = tiny.causal(), [[1, 30, 31, 32], [1, 40]]
    says = torch.randint(
        20, 200, (len(prompts) * count, 5), generator=torch.Generator().manual_seed(0)
    )
    batch, read = collate([PrefixGroup(prompt, []) for prompt in prompts]), DynamicCache()
    model.model(**batch.inputs(), past_key_values=read)
    responses = ResponseCache(read, batch.layout, count)
    start = torch.tensor([len(prompt) for prompt in prompts for _ in range(count)])
    steps = [
        model.model(
            says[:, i : i + 1], position_ids=(start + i)[:, None], past_key_values=responses
        )
        for i in range(5)
    ]
    for row, (said, got) in enumerate(zip(says, torch.cat(steps, 1), strict=True)):
        prompt = prompts[row // count]
        wanted = model.model(torch.tensor([[*prompt, *said.tolist()]]))[0, len(prompt) :]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
