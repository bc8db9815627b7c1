"""What PPO learns from: judged answers of the policy, their advantages and returns (eq. 2), in bounded passes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ixc.data.samples import Sample
from ixc.engine.batching import pack_by_budget
from ixc.engine.losses import generalized_advantages
from ixc.engine.sampling import answer_logits, cut, sample_tokens
from ixc.engine.vision_cache import VisionCache
from ixc.models.base import PolicyModel, Processor, ScoringModel
from ixc.packing.attention import to_device
from ixc.packing.layout import PackedBatch, PrefixGroup, Prompt, collate
from ixc.params import TrainPPOParams

LOGITS_AT_ONCE = 2**27
"""Logits that are in memory together; what exceeds them is computed again in the backward pass."""


@dataclass
class Models:
    """The four models; they share the frozen vision tower's features."""

    policy: PolicyModel
    reference: PolicyModel
    critic: ScoringModel
    reward: ScoringModel


class Question(NamedTuple):
    """A sample as the models read it."""

    sample: Sample
    prompt: Prompt
    images: list[Float[Tensor, "_ W"]]
    """Features of each image."""


def with_images(vision_cache: VisionCache, samples: Sequence[Sample]) -> list[Question]:
    """The samples with their pictures, of which each is fetched once, whatever follows and whatever can be kept."""
    images = iter(vision_cache.of(samples))
    return [Question(s, vision_cache.prompt(s), [next(images) for _ in s.media]) for s in samples]


def concat_features(
    prompts: Sequence[Question], device: torch.device
) -> Float[Tensor, "P W"] | None:
    """The picture tokens of several prompts, in reading order; None when there is no picture."""
    images = [tokens for prompt in prompts for tokens in prompt.images]
    return to_device(torch.cat(images), device) if images else None


class MicroBatch(NamedTuple):
    """What goes through a model together."""

    packed: PackedBatch
    image_features: Float[Tensor, "P W"] | None


def microbatches(
    params: TrainPPOParams,
    prompts: Sequence[Question],
    groups: Sequence[PrefixGroup],
    device: torch.device,
) -> Iterator[MicroBatch]:
    """The groups, in order, in as few passes as `params.max_tokens_per_microbatch` allows."""
    for rows in pack_by_budget(
        range(len(groups)), list(map(len, groups)), params.max_tokens_per_microbatch
    ):
        yield MicroBatch(
            collate([groups[i] for i in rows]).to(device),
            concat_features([prompts[i] for i in rows], device),
        )


@dataclass
class Rollout:
    """The answers to one prompt; M tokens of all its answers, laid end to end."""

    prompt: Question
    group: PrefixGroup
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
    processor: Processor,
    prompts: Sequence[Question],
    normal: "DomainNorm",
    generator: torch.Generator,
) -> list[Rollout]:
    """Sample answers, score them, and work out advantages and returns (eq. 2)."""
    models.policy.eval()
    for model in (models.policy, models.reference):
        model.suppress_control(processor)
    device = models.policy.device
    completions = sample_completions(params, models.policy, prompts, generator)
    groups = [
        PrefixGroup(question.prompt, ids)
        for question, ids in zip(prompts, completions, strict=True)
    ]
    read = [
        (
            token_log_probs(models.policy, *each, params.temperature),
            token_log_probs(models.reference, *each, params.temperature),
            token_values(models.critic, *each),
        )
        for each in microbatches(params, prompts, groups, device)
    ]
    old, reference, values = map(torch.cat, zip(*read, strict=True))
    rewards = judge(params, models.reward, processor, prompts, completions)
    normalized = normal([prompt.sample.domain for prompt in prompts], rewards)
    lengths = [len(ids) for row in completions for ids in row]
    advantages, returns = compute_advantages(
        params, lengths, old - reference, values, normalized.flatten()
    )
    sizes = [sum(map(len, ids)) for ids in completions]
    columns = (old, reference, advantages, returns)
    parts = zip(*(x.split(sizes) for x in columns), strict=True)
    return [
        Rollout(p, t, o, r, k, a, g)
        for p, t, k, (o, r, a, g) in zip(prompts, groups, rewards, parts, strict=True)
    ]


def sample_completions(
    params: TrainPPOParams,
    policy: PolicyModel,
    prompts: Sequence[Question],
    generator: torch.Generator,
) -> list[list[list[int]]]:
    """Ids of the policy's answers to each prompt; as many prompts at once as fit into a pass with all their answers."""
    sizes = [
        len(question.prompt) + params.answers_per_prompt * params.max_new_tokens
        for question in prompts
    ]
    given = (params.answers_per_prompt, params.temperature, params.max_new_tokens, generator)
    parts = [
        [prompts[i] for i in rows]
        for rows in pack_by_budget(range(len(prompts)), sizes, params.max_tokens_per_microbatch)
    ]
    sampled = (
        sample_tokens(
            policy,
            [question.prompt for question in part],
            concat_features(part, policy.device),
            *given,
        )
        for part in parts
    )
    return [
        ids for tokens in sampled for ids in cut(tokens, params.answers_per_prompt, policy.end_ids)
    ]


def judge(
    params: TrainPPOParams,
    model: ScoringModel,
    processor: Processor,
    prompts: Sequence[Question],
    completions: Sequence[Sequence[list[int]]],
) -> Float[Tensor, "S K"]:
    """Rewards of sampled ids, which are read as if written down; one without an end gets the lowest of the batch."""
    turns = [[processor.as_turn(ids) for ids in row] for row in completions]
    groups = [
        PrefixGroup(question.prompt, [processor.scored(ids) for ids in row])
        for question, row in zip(prompts, turns, strict=True)
    ]
    read = [
        model.response_scores(*each) for each in microbatches(params, prompts, groups, model.device)
    ]
    rewards = torch.cat(read).unflatten(0, (len(prompts), -1))
    ended = torch.tensor([[processor.has_ended(ids) for ids in row] for row in turns])
    return torch.where(to_device(ended, rewards.device), rewards, rewards.min())


def compute_advantages(
    params: TrainPPOParams,
    lengths: list[int],
    divergence: Float[Tensor, " M"],
    values: Float[Tensor, " M"],
    normalized: Float[Tensor, " R"],
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Advantages and returns of every token: minus its KL cost, and with the last one the answer's reward.

    Args:
        lengths: tokens of each answer.
        divergence: of the policy from the reference, nats.
        goals: the answers' rewards, standardised.
    """
    costs, padded = (
        pad_sequence(list(x.split(lengths)), True) for x in (-params.kl_coef * divergence, values)
    )
    sizes = to_device(torch.tensor(lengths), normalized.device)
    rewards = costs.scatter_add(1, sizes[:, None] - 1, normalized[:, None])
    padded = generalized_advantages(rewards, padded, sizes, params.gamma, params.lam)
    advantages = torch.cat([row[:size] for row, size in zip(padded, lengths, strict=True)])
    return advantages, advantages + values


def token_log_probs(
    model: PolicyModel,
    batch: PackedBatch,
    image_features: Float[Tensor, "P W"] | None,
    temperature: float = 1.0,
) -> Float[Tensor, " M"]:
    """Log-probability of every answer token, nats; of more than `LOGITS_AT_ONCE`, part by part.

    Args:
        temperature: that the answers were sampled at.
    """
    hidden = model.hidden_states(batch, image_features, batch.target_from)
    size = max(1, LOGITS_AT_ONCE // model.vocab_size)
    if len(hidden) <= size:
        return log_probs_of(model, hidden, batch.target_ids, temperature)
    parts = zip(hidden.split(size), batch.target_ids.split(size), strict=True)
    computed = [
        checkpoint(log_probs_of, model, *part, temperature, use_reentrant=False) for part in parts
    ]
    return torch.cat(computed)  # pyright: ignore[reportArgumentType, reportCallIssue]


def log_probs_of(
    model: PolicyModel, hidden: Float[Tensor, "M D"], ids: Int[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Log-probability of each id after its state, under the distribution that answers are sampled from."""
    log_probs = answer_logits(model, hidden, temperature).log_softmax(-1)
    return log_probs.gather(1, ids[:, None]).squeeze(1)


def token_values(
    model: ScoringModel, batch: PackedBatch, image_features: Float[Tensor, "P W"] | None
) -> Float[Tensor, " M"]:
    """The critic's value of the state before every answer token: its score head, read there."""
    return model.scores(model.hidden_states(batch, image_features, batch.target_from))


class DomainNorm:
    """Standardises rewards by the running mean and deviation of their domain."""

    def __init__(self, clip: float, decay: float = 0.9) -> None:
        self.clip, self.decay = clip, decay
        self.moments: dict[str, tuple[float, float]] = {}

    def __call__(
        self, domains: Sequence[str], rewards: Float[Tensor, "S K"]
    ) -> Float[Tensor, "S K"]:
        """Standardised, clipped rewards; each batch moves the domain's moments a little."""
        out = torch.empty_like(rewards)
        for domain in sorted(set(domains)):
            rows = [i for i, d in enumerate(domains) if d == domain]
            mean, square = self._moments(domain, rewards[rows])
            deviation = max(square - mean**2, 1e-4) ** 0.5
            out[rows] = ((rewards[rows] - mean) / deviation).clamp(-self.clip, self.clip)
        return out

    def _moments(self, domain: str, rewards: Tensor) -> tuple[float, float]:
        mean, square = rewards.mean().item(), rewards.square().mean().item()
        old_mean, old_square = self.moments.get(domain, (mean, square))
        keep = self.decay
        moved = keep * old_mean + (1 - keep) * mean, keep * old_square + (1 - keep) * square
        self.moments[domain] = moved
        return moved
