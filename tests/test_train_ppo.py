"""PPO: credit by hand, rewards by domain, what is frozen, and a toy reward that rises."""

import random
from pathlib import Path

import pytest
import tiny
import torch

from ixc.inference import generate
from ixc.model import IXCForCausalLM, IXCForRewardModel, Tree, collate
from ixc.model.folder import save
from ixc.params import TrainPPOParams
from ixc.samples import write_samples
from ixc.train_ppo import (
    DomainNorm,
    Models,
    compare,
    credit,
    divergence,
    judge,
    ready,
    run,
    token_log_probs,
    train,
)

END = tiny.processor().ids["turn_end"]


def test_credit_by_hand():
    # two answers, of two tokens and of one; gamma 0.5, lambda 0.5, 0.1 per nat of divergence
    # rewards: -0.1 * 1 = -0.1, -0.1 * -2 + 3 = 3.2 | -0.1 * 0 + 1 = 1
    # A_1 = 3.2 - 2 = 1.2;  A_0 = -0.1 + 0.5 * 2 - 1 + 0.25 * 1.2 = 0.2 | 1 - 0.5 = 0.5
    # returns, A + V: 1.2, 3.2 | 1
    params = TrainPPOParams(gamma=0.5, lam=0.5, kl_coef=0.1)
    batch = collate([Tree([1], [[5, 6], [7]])])
    advantages, returns = credit(
        params,
        batch,
        divergence=torch.tensor([1.0, -2.0, 0.0]),
        values=torch.tensor([1.0, 2.0, 0.5]),
        goals=torch.tensor([3.0, 1.0]),
    )
    torch.testing.assert_close(advantages, torch.tensor([0.2, 1.2, 0.5]))
    torch.testing.assert_close(returns, torch.tensor([1.2, 3.2, 1.0]))


def test_credit_does_not_flow_between_trees():
    params, trees = TrainPPOParams(), [Tree([1], [[5, 6], [7]]), Tree([1, 2, 3], [[8], [9, 10, 11]])]
    nats, values = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    goals = torch.tensor([1.0, -2.0, 0.5, 3.0])
    together = credit(params, collate(trees), nats, values, goals)
    first = credit(params, collate(trees[:1]), nats[:3], values[:3], goals[:2])
    second = credit(params, collate(trees[1:]), nats[3:], values[3:], goals[2:])
    for got, parts in zip(together, zip(first, second, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts))


def test_rewards_are_standardised_within_their_domain():
    norm = DomainNorm(clip=5.0)
    # general: mean 2, deviation 1; safety: mean 100, deviation 10
    got = norm(["general", "safety"], torch.tensor([[1.0, 3.0], [90.0, 110.0]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_the_moments_of_a_domain_follow_its_batches_slowly():
    norm = DomainNorm(clip=50.0, decay=0.9)
    norm(["general"], torch.tensor([[-1.0, 1.0]]))
    # mean 0.9 * 0 + 0.1 * 10 = 1; square 0.9 * 1 + 0.1 * 100 = 10.9; deviation sqrt(9.9)
    got = norm(["general"], torch.tensor([[10.0, 10.0]]))
    torch.testing.assert_close(got, torch.full((1, 2), 9 / 9.9**0.5))


def test_standardised_rewards_are_clipped_and_equal_ones_are_no_news():
    norm = DomainNorm(clip=1.5)
    got = norm(["general"] * 5, torch.tensor([[0.0]] * 4 + [[100.0]]))
    # mean 20, deviation 40: -0.5 and 2, which is clipped
    torch.testing.assert_close(got, torch.tensor([[-0.5]] * 4 + [[1.5]]))
    torch.testing.assert_close(DomainNorm(clip=1.5)(["general"], torch.full((1, 3), 7.0)), torch.zeros(1, 3))


def test_an_answer_without_an_end_gets_the_lowest_reward_of_the_batch(tmp_path: Path):
    model = tiny.reward()
    features, samples = tiny.features(model, tmp_path), [tiny.sample("Hi."), tiny.sample("Who?")]
    said = [[[40, END], [41, 42, 43]], [[44, END], [45, END]]]
    with torch.no_grad():
        got = judge(model, features, samples, said)
        ended = judge(model, features, samples, [[[40, END], [41, 42, END]], said[1]])
    assert got[0, 1] == got.min()
    assert torch.equal(got[[0, 1, 1], [0, 0, 1]], ended[[0, 1, 1], [0, 0, 1]])


@torch.no_grad()
def test_log_probabilities_are_those_of_the_plain_forward_pass():
    model, tree = tiny.causal(), Tree([1, 30], [[40, 41], [50]])
    got = token_log_probs(model, collate([tree]), None)
    logits = model(torch.tensor([[1, 30, 40, 41]])).logits.log_softmax(-1)[0]
    wanted = [logits[1, 40], logits[2, 41], logits[1, 50]]
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a reward model."""
    torch.manual_seed(0)
    base = IXCForCausalLM(tiny.config(initializer_range=0.1))
    save(base, tiny.processor(), tmp_path / "base")
    save(tiny.reward(), tiny.processor(), tmp_path / "reward")
    return tmp_path / "base", tmp_path / "reward"


def test_policy_and_critic_learn_reference_and_reward_do_not(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    before = {name: x.clone() for name, x in models.reference.state_dict().items()}
    judged = {name: x.clone() for name, x in models.reward.state_dict().items()}
    features = tiny.features(models.reference, tmp_path)
    samples = [tiny.sample("Colour?", [tiny.picture(tmp_path, "red")]), tiny.sample("Who?")]
    params = TrainPPOParams(steps=2, batch_size=8, minibatch_size=4, max_new_tokens=4, critic_warmup_steps=1)
    curve: list[dict[str, float]] = []
    train(params, models, features, samples, random.Random(0), lambda m, i: curve.append(m))

    assert features.num_encoded == 1
    assert [("policy_loss" in numbers) for numbers in curve] == [False, True]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)  # policy and reference are still one
    assert all(torch.equal(x, before[name]) for name, x in models.reference.state_dict().items())
    assert all(torch.equal(x, judged[name]) for name, x in models.reward.state_dict().items())
    for trained, old in ((models.policy, before), (models.critic, judged)):
        moved = {name.split(".")[0] for name, x in trained.state_dict().items() if not torch.equal(x, old[name])}
        assert "model" in moved and not moved & {"vit", "vision_proj", "plora_glb_GN", "plora_sub_GN"}


X, Y = (tiny.processor().encode(letter)[0] for letter in "xy")


class LikesX(torch.nn.Module):
    """A language model without depth, 16 channels: the reward is whether an answer's last word is `x`."""

    def forward(self, input_ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
        hidden = torch.zeros(*input_ids.shape, 16)
        hidden[:, 3:, 0] = (input_ids[:, :-3] == X).float()  # x, end of turn, </s>, reward token
        return hidden


def test_a_few_steps_raise_a_toy_reward(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    with torch.no_grad():  # a policy that knows two letters and how to end
        models.policy.output = torch.nn.Linear(16, 280)
        models.policy.output.bias.fill_(-20)[[X, Y, END]] = 0
    wanted = IXCForRewardModel(tiny.config())
    wanted.model = LikesX()  # pyright: ignore[reportAttributeAccessIssue]
    torch.nn.init.ones_(wanted.score.weight)
    models = Models(models.policy, models.reference, models.critic, wanted)
    features = tiny.features(models.reference, tmp_path)
    params = TrainPPOParams(
        steps=12,
        batch_size=32,
        minibatch_size=16,
        learning_rate=2e-2,
        max_new_tokens=3,
        kl_coef=0.0,
        critic_warmup_steps=1,
    )
    curve: list[dict[str, float]] = []
    samples = [tiny.sample("Go."), tiny.sample("Again.")]
    train(params, models, features, samples, random.Random(0), lambda m, i: curve.append(m))
    rewards = [numbers["reward"] for numbers in curve]
    assert sum(rewards[:3]) / 3 < 0.5  # at most a third of the answers by chance
    assert sum(rewards[-3:]) / 3 > 0.8


def test_base_and_chat_are_compared_on_the_same_prompts(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    features = tiny.features(models.reference, tmp_path)
    samples = [
        tiny.sample("Who?", gold=tiny.match("me")),
        tiny.sample("Safe?", gold=tiny.match("yes"), domain="safety"),
    ]
    got = compare(TrainPPOParams(max_new_tokens=3), models, features, samples)
    assert got["prompts"] == 2
    for name in ("gold", "reward", "length"):
        assert got[f"{name}/base"] == got[f"{name}/chat"]  # nothing has been trained
    assert got["kl"] == 0
    assert {"gold/chat/domain:general", "gold/base/domain:safety"} <= got.keys()


def test_the_divergence_from_the_base_by_hand(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    features, sample = tiny.features(models.reference, tmp_path), tiny.sample("Who?")
    with torch.no_grad():
        models.policy.output.weight.zero_()  # every token has probability 1/280
    got = divergence(models, features, [sample], [[[40, 41], [42]]])
    said = token_log_probs(models.reference, collate([Tree(features.prompt(sample), [[40, 41], [42]])]), None)
    assert got == pytest.approx(-torch.log(torch.tensor(280.0)).item() - said.mean().item(), rel=1e-5)


def test_the_stage_writes_a_chat_model_that_answers(folders: tuple[Path, Path], tmp_path: Path):
    prompts = [
        tiny.sample("a", gold=tiny.match("x")),
        tiny.sample("b", gold=tiny.match("x")),
        tiny.sample("c", gold=tiny.match("x"), split="val"),
    ]
    write_samples(prompts, tmp_path / "prompts.parquet")
    write_samples([tiny.pair("a", "x", "y", id="a#0")], tmp_path / "pairs.parquet")
    params = TrainPPOParams(steps=2, batch_size=4, minibatch_size=4, max_new_tokens=3, critic_warmup_steps=0)
    curve: list[dict[str, float]] = []
    metrics = run(
        params,
        tmp_path / "prompts.parquet",
        tmp_path / "pairs.parquet",
        tmp_path,
        *folders,
        tmp_path / "chat",
        log=lambda m, i: curve.append(m),
    )
    assert metrics["prompts"] == 1
    assert len(curve) == 2 and {"reward", "kl", "length", "policy_loss", "value_loss"} <= curve[1].keys()
    chat = IXCForCausalLM.from_pretrained(tmp_path / "chat")
    said = generate(chat, tiny.features(chat, tmp_path), prompts, 2, 1.0, 3, 3, seed=0)
    assert [len(row) for row in said] == [2, 2, 2]
    assert not torch.equal(chat.output.weight, IXCForCausalLM.from_pretrained(folders[0]).output.weight)
