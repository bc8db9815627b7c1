"""A tree of answers gives the numbers of separate rows: hidden states, logits, rewards and gradients."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ixc.models.ixc25 import Batch, IXCForCausalLM, IXCForRewardModel, Tree, collate
from ixc.models.ixc25.heads import pool

IMAGE = tiny.processor().ids["image"]
CHAT, REWARD = tiny.causal(), tiny.reward()
WORDS = st.lists(st.integers(20, 200), min_size=1, max_size=5)
TREES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=3)
"""(prefix, branches) of each"""
SHOWN = Tree([1, IMAGE, IMAGE, 30, 31], [[40, 41, 42], [50], [60, 61]])
PLAIN = Tree([1, 33], [[44], [70, 71, 72, 73]])
BEFORE = Tree([1, 30, IMAGE], [[90, 91]])
TOKENS = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
"""Two picture tokens of the first tree, one of the last."""


def together(model: IXCForCausalLM | IXCForRewardModel, batch: Batch, features: Tensor | None = None) -> Tensor:
    return model.model(**batch.inputs(), features=features)


def alone(model: IXCForCausalLM | IXCForRewardModel, ids: list[int], features: Tensor | None = None) -> Tensor:
    return model.model(torch.tensor([ids]), features=features)[0]


def log_probs(hidden: Tensor, ids: Tensor) -> Tensor:
    return CHAT.output(hidden).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


@settings(max_examples=15, deadline=None, database=None)
@given(TREES)
@torch.no_grad()
def test_branches_are_separate_rows(trees: list[tuple[list[int], list[list[int]]]]):
    batch = collate([Tree(*tree) for tree in trees])
    hidden, scored = together(CHAT, batch), together(REWARD, batch)
    said = log_probs(hidden[0, batch.target_from], batch.target_ids)
    branches = [(prefix, branch) for prefix, branches in trees for branch in branches]
    for number, (prefix, branch) in enumerate(branches):
        end = int(batch.end_at[number]) + 1
        wanted = alone(CHAT, prefix + branch)
        close(hidden[0, end - len(branch) : end], wanted[len(prefix) :])
        close(
            said[batch.target_branch == number],
            log_probs(wanted[len(prefix) - 1 : -1], torch.tensor(branch)),
        )
        states = alone(REWARD, prefix + branch)
        close(scored[0, batch.end_at[number]], states[-1])
        close(batch.mean(scored)[number], states.mean(0))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@torch.no_grad()
def test_rewards_with_pictures_in_the_prefix_are_those_of_separate_rows(pooling: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(REWARD.config, "pooling", pooling)
    own = [TOKENS[:2]] * 3 + [None] * 2 + [TOKENS[2:]]
    rows = [tree.prefix + branch for tree in (SHOWN, PLAIN, BEFORE) for branch in tree.branches]
    states = [alone(REWARD, row, seen) for row, seen in zip(rows, own, strict=True)]
    pooled = torch.stack([s[-1] if pooling == "last_token" else s.mean(0) for s in states])
    close(REWARD.branch_scores(collate([SHOWN, PLAIN, BEFORE]), TOKENS), REWARD.scores(pooled))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_separate_rows():
    model = tiny.reward()
    features = TOKENS[:2].clone().requires_grad_()
    batch = collate([SHOWN, PLAIN])
    tree = gradients(model, model.branch_scores(batch, features).tanh().sum())
    rows = [SHOWN.prefix + branch for branch in SHOWN.branches]
    states = [alone(model, row, features)[-1] for row in rows]
    states += [alone(model, PLAIN.prefix + branch)[-1] for branch in PLAIN.branches]
    from_tree, features.grad = features.grad, None
    separate = gradients(model, torch.stack([model.score(state).tanh() for state in states]).sum())

    assert tree.keys() == separate.keys() and "model.layers.0.attention.wqkv.Plora_A.weight" in tree
    for name, gradient in tree.items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert from_tree is not None and features.grad is not None
    torch.testing.assert_close(from_tree, features.grad, rtol=1e-3, atol=1e-5)


COLUMNS = {
    "ends of branches": collate([BEFORE, SHOWN]).end_at,
    "before predicted tokens": collate([BEFORE, SHOWN]).target_from,
    "pictures too, in any order": torch.tensor([6, 2, 0, 2, 7]),
    "none": torch.tensor([], dtype=torch.long),
}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_columns_read_alone_are_those_of_the_whole_row(columns: Tensor, checkpointed: bool):
    model, batch, given = tiny.reward().train(), collate([BEFORE, SHOWN]), TOKENS.clone().requires_grad_()
    if checkpointed:
        model.gradient_checkpointing_enable()
    weights = torch.randn(len(columns), 16, generator=torch.Generator().manual_seed(4))
    wanted = together(model, batch, given)[0, columns]
    of_all = gradients(model, (wanted * weights).sum())
    of_features, given.grad = given.grad, None
    got = model.model(**batch.inputs(), features=given, columns=columns)[0]
    close(got, wanted)
    of_read = gradients(model, (got * weights).sum())
    assert given.grad is not None and of_features is not None and of_read.keys() == of_all.keys()
    for one, same in [(of_read[name], of_all[name]) for name in of_all] + [(given.grad, of_features)]:
        assert (one - same).norm() <= 1e-5 * same.norm()


@torch.no_grad()
def test_the_low_rank_path_of_pictures_touches_no_text_though_it_overflows():
    model, batch = tiny.reward().half(), collate([BEFORE, SHOWN])
    wanted = model.branch_scores(batch, TOKENS.half())
    for part in ("Plora_A", "Plora_B"):
        model.get_parameter(f"model.layers.1.feed_forward.w2.{part}.weight").fill_(300)
    assert torch.equal(model.branch_scores(batch, TOKENS.half()), wanted)


@torch.no_grad()
def test_of_columns_not_read_the_last_layer_computes_nothing_after_attention():
    batch, sizes = collate([BEFORE, SHOWN]), []
    hooks = [
        module.register_forward_hook(lambda _, given, out: sizes.append(out.shape[1]))
        for name, module in REWARD.model.named_modules()
        if name.endswith(("wo", "w2"))
    ]
    REWARD.branch_scores(batch, TOKENS)
    for hook in hooks:
        hook.remove()
    assert sizes == [16, 16, 4, 4]  # tokens, branches; two layers


@torch.no_grad()
def test_a_mean_in_half_precision_has_weights_that_sum_to_1():
    # 1/n in bf16 is off by up to 1/512, and so is a row of more than 256 tokens' n
    hidden, batch = torch.ones(1, 710, 2, dtype=torch.bfloat16), collate([Tree([1] * 700, [[2] * 3, [3] * 7])])
    rows = torch.tensor([[1] * 703 + [0] * 7, [1] * 700 + [0] * 3 + [1] * 7])
    for pooled in (batch.mean(hidden), pool(hidden.expand(2, -1, -1), rows, "mean")):
        torch.testing.assert_close(pooled, torch.ones(2, 2))


@torch.no_grad()
def test_other_trees_in_the_row_change_nothing():
    own, row = collate([PLAIN]), collate([Tree([1] * 30, [[5] * 30]), PLAIN, SHOWN])
    close(together(CHAT, row, TOKENS[:2])[0, 60:67], together(CHAT, own)[0])
    close(row.mean(together(REWARD, row, TOKENS[:2]))[1:3], own.mean(together(REWARD, own)))


@torch.no_grad()
def test_a_long_neighbour_does_not_stretch_a_short_tree():
    model = tiny.causal(max_position_embeddings=8, rope_scaling={"type": "dynamic", "factor": 2.0})
    long = Tree(list(range(20, 50)), [[50], [51]])
    alone, among = collate([PLAIN]), collate([long, PLAIN])
    close(together(model, among)[0, 32:], together(model, alone)[0])


@torch.no_grad()
def test_a_branch_does_not_see_its_neighbours():
    other = Tree(PLAIN.prefix, [[99], PLAIN.branches[1]])
    got, wanted = (collate([tree]) for tree in (other, PLAIN))
    assert torch.equal(together(CHAT, got)[0, 3:], together(CHAT, wanted)[0, 3:])


def test_a_row_of_trees_by_hand():
    # prefix 1 2 | first branch 3 4 | second branch 5, which follows the prefix, not the first branch || 6 | 7
    batch = collate([Tree([1, 2], [[3, 4], [5]]), Tree([6], [[7]])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert [x.tolist() for x in batch.forest.numbers()] == [[0, 0, 0, 0, 0, 1, 1], [-1, -1, 0, 0, 1, -1, 0]]
    assert batch.forest.lengths().tolist() == [4, 4, 4, 4, 4, 2, 2]
    assert batch.end_at.tolist() == [3, 4, 6]
    assert batch.target_ids.tolist() == [3, 4, 5, 7]
    assert batch.target_from.tolist() == [1, 2, 1, 5]
    assert batch.target_branch.tolist() == [0, 0, 1, 2]


def test_given_tokens_of_a_branch_are_not_predicted():
    batch = collate([Tree([1, 2], [[3, 4, 5], [6, 7]], free=[2, 1])])
    assert batch.target_ids.tolist() == [5, 7]
    assert batch.input_ids[0, batch.target_from].tolist() == [4, 6]


def test_a_prompt_without_answers_has_no_targets():
    batch = collate([Tree([1, 2], []), Tree([1], [])])
    assert batch.input_ids.tolist() == [[1, 2, 1]]
    assert len(batch.target_ids) == len(batch.end_at) == 0


def test_sft_on_questions_about_one_picture_is_sft_on_separate_rows():
    tree = Tree([1, IMAGE], [[20, 21, 22], [23, 24]], free=[1, 1])
    batch = collate([tree])
    hidden = together(CHAT, batch, TOKENS[:1])[0, batch.target_from]
    loss = F.cross_entropy(CHAT.output(hidden), batch.target_ids, reduction="sum")
    wanted = torch.zeros(())
    for branch in tree.branches:
        logits = CHAT.output(alone(CHAT, tree.prefix + branch, TOKENS[:1]))
        wanted = wanted + F.cross_entropy(logits[2:-1], torch.tensor(branch[1:]), reduction="sum")
    torch.testing.assert_close(loss, wanted)
