"""A tree of answers gives the numbers of separate rows: hidden states, logits, rewards and gradients."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ixc.models.ixc25 import IXCForCausalLM, IXCForRewardModel
from ixc.models.ixc25.heads import pool
from ixc.packing.layout import PackedBatch, PrefixGroup, collate

IMAGE = tiny.processor().ids["image"]
CHAT, REWARD = tiny.causal(), tiny.reward()
WORDS = st.lists(st.integers(20, 200), min_size=1, max_size=5)
TREES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=3)
"""(prefix, responses) of each"""
SHOWN = PrefixGroup([1, IMAGE, IMAGE, 30, 31], [[40, 41, 42], [50], [60, 61]])
PLAIN = PrefixGroup([1, 33], [[44], [70, 71, 72, 73]])
BEFORE = PrefixGroup([1, 30, IMAGE], [[90, 91]])
TOKENS = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
"""Two image tokens of the first tree, one of the last."""


def together(
    model: IXCForCausalLM | IXCForRewardModel,
    batch: PackedBatch,
    image_features: Tensor | None = None,
) -> Tensor:
    return model.hidden_states(batch, image_features)


def alone(
    model: IXCForCausalLM | IXCForRewardModel, ids: list[int], image_features: Tensor | None = None
) -> Tensor:
    return model.model(torch.tensor([ids]), image_features=image_features)[0]


def log_probs(hidden: Tensor, ids: Tensor) -> Tensor:
    return CHAT.output(hidden).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


@settings(max_examples=15, deadline=None, database=None)
@given(TREES)
@torch.no_grad()
def test_branches_are_separate_rows(groups: list[tuple[list[int], list[list[int]]]]):
    batch = collate([PrefixGroup(*group) for group in groups])
    hidden, scored = together(CHAT, batch), together(REWARD, batch)
    said = log_probs(hidden[batch.target_from], batch.target_ids)
    responses = [(prefix, response) for prefix, responses in groups for response in responses]
    for number, (prefix, response) in enumerate(responses):
        end = int(batch.end_at[number]) + 1
        wanted = alone(CHAT, prefix + response)
        close(hidden[end - len(response) : end], wanted[len(prefix) :])
        close(
            said[batch.target_response == number],
            log_probs(wanted[len(prefix) - 1 : -1], torch.tensor(response)),
        )
        states = alone(REWARD, prefix + response)
        close(scored[batch.end_at[number]], states[-1])
        close(batch.mean(scored)[number], states.mean(0))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@torch.no_grad()
def test_rewards_with_images_in_the_prefix_are_those_of_separate_rows(
    pooling: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(REWARD.config, "pooling", pooling)
    own = [TOKENS[:2]] * 3 + [None] * 2 + [TOKENS[2:]]
    rows = [
        group.prompt.ids + response
        for group in (SHOWN, PLAIN, BEFORE)
        for response in group.responses
    ]
    states = [alone(REWARD, row, seen) for row, seen in zip(rows, own, strict=True)]
    pooled = torch.stack([s[-1] if pooling == "last_token" else s.mean(0) for s in states])
    close(REWARD.response_scores(collate([SHOWN, PLAIN, BEFORE]), TOKENS), REWARD.scores(pooled))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_separate_rows():
    model = tiny.reward()
    image_features = TOKENS[:2].clone().requires_grad_()
    batch = collate([SHOWN, PLAIN])
    group = gradients(model, model.response_scores(batch, image_features).tanh().sum())
    rows = [SHOWN.prompt.ids + response for response in SHOWN.responses]
    states = [alone(model, row, image_features)[-1] for row in rows]
    states += [alone(model, PLAIN.prompt.ids + response)[-1] for response in PLAIN.responses]
    from_tree, image_features.grad = image_features.grad, None
    separate = gradients(model, torch.stack([model.score(state).tanh() for state in states]).sum())

    assert (
        group.keys() == separate.keys() and "model.layers.0.attention.wqkv.Plora_A.weight" in group
    )
    for name, gradient in group.items():
        torch.testing.assert_close(
            gradient, separate[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert from_tree is not None and image_features.grad is not None
    torch.testing.assert_close(from_tree, image_features.grad, rtol=1e-3, atol=1e-5)


COLUMNS = {
    "ends of responses": collate([BEFORE, SHOWN]).end_at,
    "before predicted tokens": collate([BEFORE, SHOWN]).target_from,
    "pictures too, in any order": torch.tensor([6, 2, 0, 2, 7]),
    "none": torch.tensor([], dtype=torch.long),
}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_columns_read_alone_are_those_of_the_whole_row(columns: Tensor, checkpointed: bool):
    model, batch, given = (
        tiny.reward().train(),
        collate([BEFORE, SHOWN]),
        TOKENS.clone().requires_grad_(),
    )
    if checkpointed:
        model.gradient_checkpointing_enable()
    weights = torch.randn(len(columns), 16, generator=torch.Generator().manual_seed(4))
    wanted = together(model, batch, given)[columns]
    of_all = gradients(model, (wanted * weights).sum())
    of_features, given.grad = given.grad, None
    got = model.hidden_states(batch, given, columns)
    close(got, wanted)
    of_read = gradients(model, (got * weights).sum())
    assert given.grad is not None and of_features is not None and of_read.keys() == of_all.keys()
    for one, same in [(of_read[name], of_all[name]) for name in of_all] + [
        (given.grad, of_features)
    ]:
        assert (one - same).norm() <= 1e-5 * same.norm()


@torch.no_grad()
def test_the_low_rank_path_of_images_touches_no_text_though_it_overflows():
    model, batch = tiny.reward().half(), collate([BEFORE, SHOWN])
    wanted = model.response_scores(batch, TOKENS.half())
    for part in ("Plora_A", "Plora_B"):
        model.get_parameter(f"model.layers.1.feed_forward.w2.{part}.weight").fill_(300)
    assert torch.equal(model.response_scores(batch, TOKENS.half()), wanted)


@torch.no_grad()
def test_of_columns_not_read_the_last_layer_computes_nothing_after_attention():
    batch, sizes = collate([BEFORE, SHOWN]), []
    hooks = [
        module.register_forward_hook(lambda _, given, out: sizes.append(out.shape[1]))
        for name, module in REWARD.model.named_modules()
        if name.endswith(("wo", "w2"))
    ]
    REWARD.response_scores(batch, TOKENS)
    for hook in hooks:
        hook.remove()
    assert sizes == [16, 16, 4, 4]  # tokens, responses; two layers


@torch.no_grad()
def test_a_mean_in_half_precision_has_weights_that_sum_to_1():
    # 1/n in bf16 is off by up to 1/512, and so is a row of more than 256 tokens' n
    hidden, batch = (
        torch.ones(1, 710, 2, dtype=torch.bfloat16),
        collate([PrefixGroup([1] * 700, [[2] * 3, [3] * 7])]),
    )
    rows = torch.tensor([[1] * 703 + [0] * 7, [1] * 700 + [0] * 3 + [1] * 7])
    for pooled in (batch.mean(hidden[0]), pool(hidden.expand(2, -1, -1), rows, "mean")):
        torch.testing.assert_close(pooled, torch.ones(2, 2))


@torch.no_grad()
def test_other_trees_in_the_row_change_nothing():
    own, row = collate([PLAIN]), collate([PrefixGroup([1] * 30, [[5] * 30]), PLAIN, SHOWN])
    close(together(CHAT, row, TOKENS[:2])[60:67], together(CHAT, own))
    close(row.mean(together(REWARD, row, TOKENS[:2]))[1:3], own.mean(together(REWARD, own)))


@torch.no_grad()
def test_a_long_neighbour_does_not_stretch_a_short_tree():
    model = tiny.causal(max_position_embeddings=8, rope_scaling={"type": "dynamic", "factor": 2.0})
    long = PrefixGroup(list(range(20, 50)), [[50], [51]])
    alone, among = collate([PLAIN]), collate([long, PLAIN])
    close(together(model, among)[32:], together(model, alone))


@torch.no_grad()
def test_a_branch_does_not_see_its_neighbours():
    other = PrefixGroup(PLAIN.prefix, [[99], PLAIN.responses[1]])
    got, wanted = (collate([group]) for group in (other, PLAIN))
    assert torch.equal(together(CHAT, got)[3:], together(CHAT, wanted)[3:])


def test_a_row_of_trees_by_hand():
    # prefix 1 2 | first response 3 4 | second response 5, which follows the prefix, not the first response || 6 | 7
    batch = collate([PrefixGroup([1, 2], [[3, 4], [5]]), PrefixGroup([6], [[7]])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert [x.tolist() for x in batch.layout.numbers()] == [
        [0, 0, 0, 0, 0, 1, 1],
        [-1, -1, 0, 0, 1, -1, 0],
    ]
    assert batch.layout.lengths().tolist() == [4, 4, 4, 4, 4, 2, 2]
    assert batch.end_at.tolist() == [3, 4, 6]
    assert batch.target_ids.tolist() == [3, 4, 5, 7]
    assert batch.target_from.tolist() == [1, 2, 1, 5]
    assert batch.target_response.tolist() == [0, 0, 1, 2]


def test_given_tokens_of_a_branch_are_not_predicted():
    batch = collate([PrefixGroup([1, 2], [[3, 4, 5], [6, 7]], free=[2, 1])])
    assert batch.target_ids.tolist() == [5, 7]
    assert batch.input_ids[0, batch.target_from].tolist() == [4, 6]


def test_a_prompt_without_answers_has_no_targets():
    batch = collate([PrefixGroup([1, 2], []), PrefixGroup([1], [])])
    assert batch.input_ids.tolist() == [[1, 2, 1]]
    assert len(batch.target_ids) == len(batch.end_at) == 0


def test_sft_on_questions_about_one_image_is_sft_on_separate_rows():
    group = PrefixGroup([1, IMAGE], [[20, 21, 22], [23, 24]], free=[1, 1])
    batch = collate([group])
    hidden = together(CHAT, batch, TOKENS[:1])[batch.target_from]
    loss = F.cross_entropy(CHAT.output(hidden), batch.target_ids, reduction="sum")
    wanted = torch.zeros(())
    for response in group.responses:
        logits = CHAT.output(alone(CHAT, group.prompt.ids + response, TOKENS[:1]))
        wanted = wanted + F.cross_entropy(logits[2:-1], torch.tensor(response[1:]), reduction="sum")
    torch.testing.assert_close(loss, wanted)
