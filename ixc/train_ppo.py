"""PPO of the chat model against the reward model (paper, section 4.1, equations 2-4).

Policy and reference start from the base, the critic from the reward model. The reward arrives with an answer's last
token; every token pays for its divergence from the reference. Where the paper is silent or misprinted: the ratio is
against the rollout policy (`losses.policy_loss`), rewards are standardised within their domain (the paper notes that
their averages differ), and an answer that never ends scores as the worst of its batch.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ixc import distributed
from ixc.features import Features
from ixc.files import track
from ixc.inference import generate, rewards_of, sample_ids, sampler, score
from ixc.judging.verifiers import check
from ixc.losses import generalized_advantages, policy_loss, value_loss, whiten
from ixc.metrics import Log, Metrics, ignore
from ixc.model import Batch, IXCForCausalLM, IXCForRewardModel, IXCProcessor, Tree, collate
from ixc.model.folder import load, save
from ixc.params import TrainPPOParams
from ixc.samples import Sample, balanced, read_samples, verifiable
from ixc.training import Optimizer, seed_everything


@dataclass
class Models:
    """The four models; they share the frozen vision tower's features."""

    policy: IXCForCausalLM
    reference: IXCForCausalLM
    critic: IXCForRewardModel
    reward: IXCForRewardModel


def run(
    params: TrainPPOParams,
    prompts: Path,
    pairs: Path,
    media: Path,
    base: Path,
    reward: Path,
    chat: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Train the chat model on the prompts of the training pairs; compare it with the base on held-out prompts."""
    rng = seed_everything(params.seed)
    models, processor = ready(base, reward)
    features = Features(models.reference, processor, media)
    paired = {s.id.split("#")[0] for s in read_samples(pairs)}
    samples = list(read_samples(prompts))
    train(params, models, features, [s for s in samples if s.id in paired], rng, log)
    save(models.policy, processor, chat)
    held_out = balanced(verifiable(samples), params.eval_prompts, params.seed)
    return compare(params, models, features, held_out)


def ready(base: Path, reward: Path) -> tuple[Models, IXCProcessor]:
    """Policy and reference from the base, critic and reward from the reward model; and the processor."""
    device = distributed.device()
    (policy, processor), (judge, _) = load(base, IXCForCausalLM, device), load(reward, IXCForRewardModel, device)
    models = Models(policy, copy.deepcopy(policy), copy.deepcopy(judge), judge)
    for frozen in (models.reference, models.reward):
        frozen.requires_grad_(False)
    for trained in (models.policy, models.critic):
        trained.freeze_vision()
    return models, processor


def train(
    params: TrainPPOParams,
    models: Models,
    features: Features,
    samples: Sequence[Sample],
    rng: random.Random,
    log: Log,
) -> None:
    """Roll out, judge, update; `steps` times."""
    features.prepare(samples)
    updates = params.steps * params.epochs * -(-params.batch_size // params.minibatch_size)
    actor = Optimizer(models.policy.parameters(), params.learning_rate, updates)
    critic = Optimizer(models.critic.parameters(), params.critic_learning_rate, updates)
    normal = DomainNorm(params.reward_clip)
    generator = sampler(models.policy, params.seed)
    groups = params.batch_size // params.answers_per_prompt
    for step in track(range(params.steps), "train_ppo", params.steps):
        drawn = rng.choices(samples, k=groups)
        rollouts = roll_out(params, models, features, drawn, normal, generator)
        numbers: dict[str, list[float]] = defaultdict(list)
        for _ in range(params.epochs):
            for chunk in shuffled(rollouts, params.minibatch_size // params.answers_per_prompt, rng):
                learn_policy = step >= params.critic_warmup_steps
                for name, value in update(params, models, actor, critic, features, chunk, learn_policy).items():
                    numbers[name].append(value)
        log({**summary(rollouts), **{name: float(np.mean(x)) for name, x in numbers.items()}}, step)


@dataclass
class Rollout:
    """The answers to one prompt; M tokens of all its answers, laid end to end."""

    sample: Sample
    tree: Tree
    log_probs: Float[Tensor, " M"]
    reference_log_probs: Float[Tensor, " M"]
    rewards: Float[Tensor, " K"]
    """The reward model's, as it gives them."""
    advantages: Float[Tensor, " M"]
    returns: Float[Tensor, " M"]


@torch.no_grad()
def roll_out(
    params: TrainPPOParams,
    models: Models,
    features: Features,
    samples: Sequence[Sample],
    normal: "DomainNorm",
    generator: torch.Generator,
) -> list[Rollout]:
    """Sample answers, score them, and work out advantages and returns (eq. 2)."""
    models.policy.eval()
    said = sample_ids(
        models.policy,
        features,
        samples,
        params.answers_per_prompt,
        params.temperature,
        params.max_new_tokens,
        generator,
    )
    trees = [Tree(features.prompt(s), ids) for s, ids in zip(samples, said, strict=True)]
    batch = collate(trees).to(models.policy.device)
    shown = features.together(samples)
    old, reference = (token_log_probs(m, batch, shown) for m in (models.policy, models.reference))
    values = token_values(models.critic, batch, shown)
    rewards = judge(models.reward, features, samples, said)
    goals = normal([s.domain for s in samples], rewards)
    advantages, returns = credit(params, batch, old - reference, values, goals.flatten())
    sizes = [sum(map(len, ids)) for ids in said]
    columns = (old, reference, advantages, returns)
    parts = zip(*(x.split(sizes) for x in columns), strict=True)
    return [Rollout(s, t, o, r, k, a, g) for s, t, k, (o, r, a, g) in zip(samples, trees, rewards, parts, strict=True)]


def judge(
    model: IXCForRewardModel,
    features: Features,
    samples: Sequence[Sample],
    said: Sequence[Sequence[list[int]]],
) -> Float[Tensor, "S K"]:
    """Rewards of sampled ids; an answer without an end gets the lowest of the batch."""
    processor = features.processor
    trees = [
        Tree(features.prompt(s), [processor.scored(ids) for ids in row]) for s, row in zip(samples, said, strict=True)
    ]
    rewards = rewards_of(model, features, samples, collate(trees)).unflatten(0, (len(samples), -1))
    ended = torch.tensor([[ids[-1] == processor.ids["turn_end"] for ids in row] for row in said])
    return torch.where(ended.to(rewards.device), rewards, rewards.min())


def credit(
    params: TrainPPOParams,
    batch: Batch,
    divergence: Float[Tensor, " M"],
    values: Float[Tensor, " M"],
    goals: Float[Tensor, " R"],
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Advantages and returns of every token: minus its KL cost, and with the last one the answer's reward."""
    lengths = torch.bincount(batch.target_branch, minlength=len(goals))
    at = torch.cat([torch.arange(n, device=goals.device) for n in lengths.tolist()])
    rewards, padded = goals.new_zeros(2, len(goals), int(lengths.max()))
    rewards[batch.target_branch, at] = -params.kl_coef * divergence
    rewards[torch.arange(len(goals), device=goals.device), lengths - 1] += goals
    padded[batch.target_branch, at] = values
    advantages = generalized_advantages(rewards, padded, lengths, params.gamma, params.lam)
    advantages = advantages[batch.target_branch, at]
    return advantages, advantages + values


def update(
    params: TrainPPOParams,
    models: Models,
    actor: Optimizer,
    critic: Optimizer,
    features: Features,
    rollouts: Sequence[Rollout],
    learn_policy: bool,
) -> dict[str, float]:
    """One minibatch: the policy by eq. 3, the critic by eq. 4."""
    batch = collate([r.tree for r in rollouts]).to(models.policy.device)
    shown = features.together(r.sample for r in rollouts)
    critic_loss = value_loss(token_values(models.critic, batch, shown), torch.cat([r.returns for r in rollouts]))
    critic.step(critic_loss)
    if not learn_policy:
        return {"value_loss": critic_loss.item()}
    advantages = whiten(torch.cat([r.advantages for r in rollouts]))
    old = torch.cat([r.log_probs for r in rollouts])
    loss, clip_fraction = policy_loss(token_log_probs(models.policy, batch, shown), old, advantages, params.clip)
    norm = actor.step(loss)["grad_norm"]
    return {
        "policy_loss": loss.item(),
        "value_loss": critic_loss.item(),
        "clip_fraction": clip_fraction.item(),
        "grad_norm": norm,
    }


def token_log_probs(model: IXCForCausalLM, batch: Batch, features: Float[Tensor, "P D"] | None) -> Float[Tensor, " M"]:
    """Log-probability of every answer token, nats."""
    hidden = model.model(**batch.inputs(), features=features)
    logits = model.output(hidden[0, batch.target_from]).float()
    return logits.log_softmax(-1).gather(1, batch.target_ids[:, None]).squeeze(1)


def token_values(model: IXCForRewardModel, batch: Batch, features: Float[Tensor, "P D"] | None) -> Float[Tensor, " M"]:
    """The critic's value of the state before every answer token: its score head, read there."""
    hidden = model.model(**batch.inputs(), features=features)
    return model.scores(hidden[0, batch.target_from])


class DomainNorm:
    """Standardises rewards by the running mean and deviation of their domain."""

    def __init__(self, clip: float, decay: float = 0.9) -> None:
        self.clip, self.decay = clip, decay
        self.moments: dict[str, tuple[float, float]] = {}

    def __call__(self, domains: Sequence[str], rewards: Float[Tensor, "S K"]) -> Float[Tensor, "S K"]:
        """Standardised, clipped rewards; each batch moves the domain's moments a little."""
        out = torch.empty_like(rewards)
        for domain in sorted(set(domains)):
            rows = [i for i, d in enumerate(domains) if d == domain]
            mean, square = self._moments(domain, rewards[rows])
            deviation = max(square - mean**2, 1e-4) ** 0.5
            out[rows] = ((rewards[rows] - mean) / deviation).clamp(-self.clip, self.clip)
        return out

    def _moments(self, domain: str, rewards: Tensor) -> tuple[float, float]:
        new = (rewards.mean().item(), rewards.square().mean().item())
        old = self.moments.get(domain, new)
        self.moments[domain] = tuple(self.decay * a + (1 - self.decay) * b for a, b in zip(old, new, strict=True))  # type: ignore[assignment]
        return self.moments[domain]


def shuffled(rollouts: Sequence[Rollout], size: int, rng: random.Random) -> list[list[Rollout]]:
    """Minibatches of prompts in random order."""
    order = rng.sample(list(rollouts), len(rollouts))
    return [order[i : i + size] for i in range(0, len(order), size)]


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of a rollout batch: reward, KL in nats per token, tokens per answer, entropy's estimate."""
    divergence = torch.cat([r.log_probs - r.reference_log_probs for r in rollouts])
    rewards = torch.cat([r.rewards for r in rollouts])
    return {
        "reward": rewards.mean().item(),
        "kl": divergence.mean().item(),
        "length": len(divergence) / len(rewards),
        "entropy": -torch.cat([r.log_probs for r in rollouts]).mean().item(),
    }


def compare(params: TrainPPOParams, models: Models, features: Features, samples: Sequence[Sample]) -> Metrics:
    """Base against chat on the same held-out prompts: gold accuracy, reward, length; KL of chat from base."""
    metrics: Metrics = {"prompts": len(samples)}
    for name, model in (("base", models.reference), ("chat", models.policy)):
        said = generate(
            model,
            features,
            samples,
            params.eval_samples,
            params.temperature,
            params.max_new_tokens,
            64,
            params.seed + 1,
        )
        texts = [[a.text for a in row] for row in said]
        rewards = score(models.reward, features, samples, texts, 64)
        right = [
            float(np.mean([check(s.gold, t) or 0 for t in row]))
            for s, row in zip(samples, texts, strict=True)
            if s.gold
        ]
        metrics[f"gold/{name}"] = float(np.mean(right))
        metrics[f"reward/{name}"] = float(np.mean(rewards))
        metrics[f"length/{name}"] = float(np.mean([len(a.ids) for row in said for a in row]))
        for domain in sorted({s.domain for s in samples}):
            own = [r for r, s in zip(right, samples, strict=True) if s.domain == domain]
            metrics[f"gold/{name}/domain:{domain}"] = float(np.mean(own))
    metrics["kl"] = divergence(models, features, samples, [[a.ids for a in row] for row in said])
    return metrics


@torch.no_grad()
def divergence(
    models: Models, features: Features, samples: Sequence[Sample], said: Sequence[Sequence[list[int]]]
) -> float:
    """KL(chat || base) on chat's own answers, nats per token."""
    total, count = 0.0, 0
    for start in range(0, len(samples), 64):
        part = samples[start : start + 64]
        trees = [Tree(features.prompt(s), list(ids)) for s, ids in zip(part, said[start : start + 64], strict=True)]
        batch = collate(trees).to(models.policy.device)
        shown = features.together(part)
        gap = token_log_probs(models.policy, batch, shown) - token_log_probs(models.reference, batch, shown)
        total, count = total + gap.sum().item(), count + len(gap)
    return total / max(1, count)
