"""What PPO learns from: judged answers of the policy, their advantages and returns (eq. 2), in bounded passes.

The processes share a step's prompts out by batches, which are the same on any number of them, and so are each batch's
random numbers. Then all processes have all rollouts, images aside: what is standardised or compared, is so over all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ixc.data.samples import Sample
from ixc.engine import distributed
from ixc.engine.batching import batched, my_share, pack_by_budget
from ixc.engine.losses import generalized_advantages
from ixc.engine.sampling import answer_logits, cut, sample_tokens, sampler
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


@dataclass
class Question:
    """A sample as the models read it."""

    sample: Sample
    prompt: Prompt
    images: list[Float[Tensor, "_ W"]] | None = None
    """Features of each image; None until a process needs them."""


def prompts_of(vision_cache: VisionCache, samples: Sequence[Sample]) -> list[Question]:
    """The samples with their ids, without their images."""
    return [Question(sample, vision_cache.prompt(sample)) for sample in samples]


def load_images(vision_cache: VisionCache, prompts: Sequence[Question]) -> None:
    """Give their images to prompts that have none yet; an image of several is fetched once, whatever is cached."""
    missing = [prompt for prompt in prompts if prompt.images is None]
    features = iter(vision_cache.of([prompt.sample for prompt in missing]))
    for prompt in missing:
        prompt.images = [next(features) for _ in prompt.sample.media]


def with_images(vision_cache: VisionCache, samples: Sequence[Sample]) -> list[Question]:
    """The samples with ids and images."""
    prompts = prompts_of(vision_cache, samples)
    load_images(vision_cache, prompts)
    return prompts


def concat_features(
    prompts: Sequence[Question], device: torch.device
) -> Float[Tensor, "P W"] | None:
    """The image features of several prompts, in reading order; None when there is no image."""
    images: list[Tensor] = []
    for prompt in prompts:
        assert prompt.images is not None
        images += prompt.images
    return to_device(torch.cat(images), device) if images else None


@dataclass(frozen=True)
class MicroBatch:
    """What goes through a model together."""

    packed: PackedBatch
    image_features: Float[Tensor, "P W"] | None


def microbatch(
    prompts: Sequence[Question], groups: Sequence[PrefixGroup], device: torch.device
) -> MicroBatch:
    """Some prompts with their answers, where the models are."""
    return MicroBatch(collate(groups).to(device), concat_features(prompts, device))


def microbatches(
    params: TrainPPOParams,
    prompts: Sequence[Question],
    groups: Sequence[PrefixGroup],
    device: torch.device,
) -> Iterator[MicroBatch]:
    """The groups, in order, in as few passes as `params.max_tokens_per_microbatch` allows."""
    sizes = [len(group) for group in groups]
    for rows in pack_by_budget(range(len(groups)), sizes, params.max_tokens_per_microbatch):
        yield microbatch([prompts[i] for i in rows], [groups[i] for i in rows], device)


@dataclass
class Answers:
    """The answers to one prompt and what the four models make of them; M tokens of all answers, laid end to end.

    In main memory, for processes exchange it.
    """

    responses: list[list[int]]
    log_probs: Float[Tensor, " M"]
    reference_log_probs: Float[Tensor, " M"]
    values: Float[Tensor, " M"]
    rewards: Float[Tensor, " K"]
    """The reward model's, as it gives them."""
    ended: Bool[Tensor, " K"]
    """Whether an answer came to its end."""


@dataclass
class Rollout:
    """The answers to one prompt; M tokens of all its answers, laid end to end."""

    prompt: Question
    group: PrefixGroup
    log_probs: Float[Tensor, " M"]
    reference_log_probs: Float[Tensor, " M"]
    rewards: Float[Tensor, " K"]
    """The reward model's; of an answer without an end the lowest of the step."""
    advantages: Float[Tensor, " M"]
    returns: Float[Tensor, " M"]


@torch.no_grad()
def roll_out(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    prompts: Sequence[Question],
    normal: "DomainNorm",
    step: int,
) -> list[Rollout]:
    """Sample answers, score them, and work out advantages and returns (eq. 2); all processes get all rollouts.

    Args:
        normal: the running moments of rewards, which every process moves alike.
        step: of the run, from which the random numbers follow.
    """
    models.policy.eval()
    for model in (models.policy, models.reference):
        model.suppress_control(vision_cache.processor)

    # Each process answers its share of the batches; every batch has random numbers of its own.
    batches = sampling_batches(params, prompts)
    mine = [batches[number] for number in my_share(costs(prompts, batches))]
    load_images(vision_cache, [prompts[i] for batch in mine for i in batch])
    answers: dict[int, Answers] = {}
    for batch in mine:
        generator = sampler(models.policy, params.seed, step * len(prompts) + min(batch))
        chosen = [prompts[i] for i in batch]
        answered = answer(params, models, vision_cache.processor, chosen, generator)
        answers |= zip(batch, answered, strict=True)

    # From here on all processes compute the same.
    for others in distributed.gathered(answers):
        answers |= others
    return rollouts_of(params, prompts, [answers[i] for i in range(len(prompts))], normal)


def sampling_batches(params: TrainPPOParams, prompts: Sequence[Question]) -> list[list[int]]:
    """Which prompts are answered together: those of like length, within the budget with all their answers."""
    lengths = [len(prompt.prompt) for prompt in prompts]
    answer_tokens = params.answers_per_prompt * params.max_new_tokens
    return batched(
        lengths,
        [length + answer_tokens for length in lengths],
        [prompt.sample.id for prompt in prompts],
        params.sampling_batch_size,
        params.max_tokens_per_microbatch,
    )


def costs(prompts: Sequence[Question], batches: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each batch's prompts."""
    tokens: list[int] = []
    for batch in batches:
        tokens.append(sum(len(prompts[i].prompt) for i in batch))
    return tokens


def answer(
    params: TrainPPOParams,
    models: Models,
    processor: Processor,
    prompts: Sequence[Question],
    generator: torch.Generator,
) -> list[Answers]:
    """The policy's answers to each prompt, and what the models make of them."""
    completions = sample_completions(params, models.policy, prompts, generator)
    groups = [
        PrefixGroup(prompt.prompt, responses)
        for prompt, responses in zip(prompts, completions, strict=True)
    ]

    # Each answer token's log-probability, under policy and reference, and the critic's value before it.
    log_probs, reference_log_probs, values = [], [], []
    for batch in microbatches(params, prompts, groups, models.policy.device):
        log_probs.append(token_log_probs(models.policy, batch, params.temperature))
        reference_log_probs.append(token_log_probs(models.reference, batch, params.temperature))
        values.append(token_values(models.critic, batch))
    sizes = [sum(map(len, responses)) for responses in completions]
    log_probs_of_prompt = torch.cat(log_probs).cpu().split(sizes)
    reference_of_prompt = torch.cat(reference_log_probs).cpu().split(sizes)
    values_of_prompt = torch.cat(values).cpu().split(sizes)

    # The reward model reads the same answers, as if written down.
    rewards = judge(params, models.reward, processor, prompts, completions).cpu()
    answers: list[Answers] = []
    for i, responses in enumerate(completions):
        answers.append(
            Answers(
                responses=responses,
                log_probs=log_probs_of_prompt[i],
                reference_log_probs=reference_of_prompt[i],
                values=values_of_prompt[i],
                rewards=rewards[i],
                ended=torch.tensor([processor.has_ended(ids) for ids in responses]),
            )
        )
    return answers


def rollouts_of(
    params: TrainPPOParams,
    prompts: Sequence[Question],
    answers: Sequence[Answers],
    normal: "DomainNorm",
) -> list[Rollout]:
    """Advantages and returns of a step's answers."""
    # Over the whole step: the lowest reward, and each domain's moments.
    rewards = punish_endless(
        torch.stack([each.rewards for each in answers]),
        torch.stack([each.ended for each in answers]),
    )
    normalized = normal([prompt.sample.domain for prompt in prompts], rewards)

    # Eq. 2, of all answers at once.
    log_probs = torch.cat([each.log_probs for each in answers])
    reference_log_probs = torch.cat([each.reference_log_probs for each in answers])
    advantages, returns = compute_advantages(
        params,
        [len(ids) for each in answers for ids in each.responses],
        log_probs - reference_log_probs,
        torch.cat([each.values for each in answers]),
        normalized.flatten(),
    )

    # Laid end to end they were computed; each prompt gets its own.
    sizes = [len(each.values) for each in answers]
    advantages_of_prompt, returns_of_prompt = advantages.split(sizes), returns.split(sizes)
    return [
        Rollout(
            prompt=prompts[i],
            group=PrefixGroup(prompts[i].prompt, each.responses),
            log_probs=each.log_probs,
            reference_log_probs=each.reference_log_probs,
            rewards=rewards[i],
            advantages=advantages_of_prompt[i],
            returns=returns_of_prompt[i],
        )
        for i, each in enumerate(answers)
    ]


def sample_completions(
    params: TrainPPOParams,
    policy: PolicyModel,
    prompts: Sequence[Question],
    generator: torch.Generator,
) -> list[list[list[int]]]:
    """Ids of the policy's answers to each prompt."""
    tokens = sample_tokens(
        policy,
        [prompt.prompt for prompt in prompts],
        concat_features(prompts, policy.device),
        params.answers_per_prompt,
        params.temperature,
        params.max_new_tokens,
        generator,
    )
    return cut(tokens, params.answers_per_prompt, policy.end_ids)


def judge(
    params: TrainPPOParams,
    model: ScoringModel,
    processor: Processor,
    prompts: Sequence[Question],
    completions: Sequence[Sequence[list[int]]],
) -> Float[Tensor, "S K"]:
    """Rewards of sampled ids, which are read as if written down."""
    groups: list[PrefixGroup] = []
    for prompt, responses in zip(prompts, completions, strict=True):
        # The tail that a score is read from follows the turn's end.
        turns = [processor.as_turn(ids) for ids in responses]
        groups.append(PrefixGroup(prompt.prompt, [processor.scored(ids) for ids in turns]))
    scores = [
        model.response_scores(batch.packed, batch.image_features)
        for batch in microbatches(params, prompts, groups, model.device)
    ]
    return torch.cat(scores).unflatten(0, (len(prompts), -1))


def punish_endless(
    rewards: Float[Tensor, "S K"], ended: Bool[Tensor, "S K"]
) -> Float[Tensor, "S K"]:
    """The rewards; an answer without an end gets the lowest of the batch."""
    return torch.where(ended, rewards, rewards.min())


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
        values: the critic's, of the state before each token.
        normalized: the answers' rewards, standardised.
    """
    # One row per answer, padded: every token costs its divergence, the last one brings the reward.
    costs = pad_sequence(list((-params.kl_coef * divergence).split(lengths)), batch_first=True)
    values_of_answer = pad_sequence(list(values.split(lengths)), batch_first=True)
    sizes = to_device(torch.tensor(lengths), normalized.device)
    rewards = costs.scatter_add(1, sizes[:, None] - 1, normalized[:, None])

    padded = generalized_advantages(rewards, values_of_answer, sizes, params.gamma, params.lam)
    advantages = torch.cat([row[:size] for row, size in zip(padded, lengths, strict=True)])
    return advantages, advantages + values


def token_log_probs(
    model: PolicyModel, batch: MicroBatch, temperature: float = 1.0
) -> Float[Tensor, " M"]:
    """Log-probability of every answer token, nats; of more than `LOGITS_AT_ONCE`, part by part.

    Args:
        temperature: that the answers were sampled at.
    """
    hidden, targets = (
        model.hidden_states(batch.packed, batch.image_features, batch.packed.target_from),
        batch.packed.target_ids,
    )
    size = max(1, LOGITS_AT_ONCE // model.vocab_size)
    if len(hidden) <= size:
        return log_probs_of(model, hidden, targets, temperature)

    # A vocabulary's worth of logits per token: parts are computed again in the backward pass.
    parts: list[Tensor] = []
    for some, ids in zip(hidden.split(size), targets.split(size), strict=True):
        computed = checkpoint(log_probs_of, model, some, ids, temperature, use_reentrant=False)
        assert isinstance(computed, Tensor)
        parts.append(computed)
    return torch.cat(parts)


def log_probs_of(
    model: PolicyModel, hidden: Float[Tensor, "M D"], ids: Int[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Log-probability of each id after its state, under the distribution that answers are sampled from."""
    log_probs = answer_logits(model, hidden, temperature).log_softmax(-1)
    return log_probs.gather(1, ids[:, None]).squeeze(1)


def token_values(model: ScoringModel, batch: MicroBatch) -> Float[Tensor, " M"]:
    """The critic's value of the state before every answer token: its score head, read there."""
    return model.scores(
        model.hidden_states(batch.packed, batch.image_features, batch.packed.target_from)
    )


class DomainNorm:
    """Standardises rewards by the running mean and deviation of their domain."""

    def __init__(self, clip: float, decay: float = 0.9) -> None:
        self.clip, self.decay = clip, decay
        self.moments: dict[str, tuple[float, float]] = {}
        """Mean and mean square of each domain's rewards."""

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return {"moments": dict(self.moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.moments = dict(state["moments"])

    def __call__(
        self, domains: Sequence[str], rewards: Float[Tensor, "S K"]
    ) -> Float[Tensor, "S K"]:
        """Standardised, clipped rewards; each batch moves the domain's moments a little."""
        out = torch.empty_like(rewards)
        for domain in sorted(set(domains)):
            rows = [row for row, other in enumerate(domains) if other == domain]
            mean, square = self._moments(domain, rewards[rows])
            # Equal rewards have no deviation, and are no news.
            deviation = max(square - mean**2, 1e-4) ** 0.5
            out[rows] = ((rewards[rows] - mean) / deviation).clamp(-self.clip, self.clip)
        return out

    def _moments(self, domain: str, rewards: Tensor) -> tuple[float, float]:
        # A domain that is met for the first time starts with this batch's.
        mean, square = rewards.mean().item(), rewards.square().mean().item()
        old_mean, old_square = self.moments.get(domain, (mean, square))
        keep, move = self.decay, 1 - self.decay
        moved = keep * old_mean + move * mean, keep * old_square + move * square
        self.moments[domain] = moved
        return moved
