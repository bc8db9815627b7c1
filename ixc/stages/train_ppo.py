"""PPO of the chat model against the reward model (paper, section 4.1, equations 2-4).

Policy and reference start from the base, the critic from the reward model. The reward arrives with an answer's last
token; every token pays for its divergence from the reference. Where the paper is silent or misprinted: the ratio is
against the rollout policy (`losses.policy_loss`), rewards are standardised within their domain (the paper notes that
their averages differ), and an answer that never ends scores as the worst of its batch.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ixc.data.samples import BadRecord, Sample, balanced, read_samples, verifiable
from ixc.engine import distributed
from ixc.engine.batching import refuse_larger
from ixc.engine.losses import policy_loss, value_loss, whiten
from ixc.engine.optim import Optimizer, seed_everything
from ixc.engine.sampling import generate, sampler
from ixc.engine.scoring import score
from ixc.engine.towers import Reader, refuse_unequal
from ixc.engine.vision_cache import VisionCache
from ixc.io.files import track
from ixc.metrics import Log, Metrics, ignore
from ixc.models import load_policy, load_scorer, save
from ixc.models.base import Processor
from ixc.models.kernels import refuse_attention, use_attention
from ixc.packing.layout import PrefixGroup
from ixc.params import AttentionName, Precision, TrainPPOParams
from ixc.rl.rollouts import (
    DomainNorm,
    Models,
    Rollout,
    microbatches,
    roll_out,
    token_log_probs,
    token_values,
    with_images,
)
from ixc.verifiers.rules import check

COMPARED_AT_ONCE = 64
"""Held-out prompts."""


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
    """Train the chat model on the training prompts; compare it with the base on held-out prompts."""
    rng = seed_everything(params.seed)
    models, processor = ready(base, reward, params.precision, params.attention)
    vision_cache = VisionCache(models.reference, processor, media, params.vision_cache)
    samples = list(read_samples(prompts))
    asked = prompts_to_learn(read_samples(pairs), samples, pairs)
    held_out = balanced(verifiable(samples), params.eval_prompts, params.seed)
    refuse_long(params, vision_cache, held_out, params.eval_samples)
    train(params, models, vision_cache, asked, rng, log)
    save(models.policy, processor, chat)
    return compare(params, models, vision_cache, held_out)


def prompts_to_learn(
    pairs: Iterable[Sample], prompts: Sequence[Sample], pairs_path: Path
) -> list[Sample]:
    """The prompts that pairs were made of, and those of train that nobody knows an answer to, in the prompts' order.

    Ready pairs, made of no prompt, name none.

    Args:
        pairs_path: what the table of pairs is called in an error.

    Raises:
        BadRecord: there is none, or a prompt that a pair names is not there.
    """
    wanted = {pair.prompt_id for pair in pairs} - {""}
    found = [
        prompt
        for prompt in prompts
        if prompt.id in wanted or (prompt.gold is None and prompt.split == "train")
    ]
    if not found:
        raise BadRecord(
            f"{pairs_path}: prompt_id: no pair names the prompt that it was made of; if an earlier version wrote the "
            "table, run `judge` and `validate` again; if all pairs are ready ones, add a source of prompts"
        )
    if lost := sorted(wanted - {prompt.id for prompt in found}):
        raise BadRecord(
            f"{pairs_path}: prompt_id: {lost[0]!r} (and {len(lost) - 1:,} more): no prompt of this id; run `generate`, "
            "`judge` and `validate` again on these prompts"
        )
    return found


def ready(
    base: Path, reward: Path, precision: Precision = "fp32", attention: AttentionName = "auto"
) -> tuple[Models, Processor]:
    """Policy and reference from the base, critic and reward from the reward model; and the processor.

    Whatever precision they are stored in, what is trained is kept in fp32: a step of AdamW is lost in bf16.

    Raises:
        NoAttention: as in `use_attention`.
        UnequalModels: base and reward model do not read pictures or texts alike.
    """
    refuse_attention(attention, distributed.device())
    place = distributed.device(), torch.float32
    policy, processor = load_policy(base, *place)
    judge, judges_processor = load_scorer(reward, *place)
    refuse_unequal(Reader(base, policy, processor), Reader(reward, judge, judges_processor))
    models = Models(policy, copy.deepcopy(policy), copy.deepcopy(judge), judge)
    for frozen in (models.reference, models.reward):
        frozen.requires_grad_(False)
    for trained in (models.policy, models.critic):
        trained.freeze_vision()
    if precision == "bf16":
        for model in vars(models).values():
            model.compute_in_bf16()
        for frozen in (models.reference, models.reward):
            frozen.keep_in_bf16()
    for model in vars(models).values():
        use_attention(model, attention, torch.bfloat16 if precision == "bf16" else torch.float32)
    return models, processor


def refuse_long(
    params: TrainPPOParams, vision_cache: VisionCache, samples: Sequence[Sample], answers: int
) -> None:
    """Check, before anything is computed, that every prompt with its answers, however long, fits into a pass.

    Raises:
        OverBudget: one does not.
    """
    longest = answers * (params.max_new_tokens + len(vision_cache.processor.scored([])))
    sizes = [len(vision_cache.prompt(sample)) + longest for sample in samples]
    unit, key = "tokens with its answers", "train_ppo.max_tokens_per_microbatch"
    refuse_larger(
        sizes, [sample.id for sample in samples], params.max_tokens_per_microbatch, unit, key
    )


def train(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    rng: random.Random,
    log: Log,
) -> None:
    """Roll out, judge, update; `steps` times."""
    vision_cache.prepare(samples)
    refuse_long(params, vision_cache, samples, params.answers_per_prompt)
    if params.gradient_checkpointing:
        for trained in (models.policy, models.critic):
            trained.gradient_checkpointing_enable()
    updates = params.epochs * -(-params.batch_size // params.minibatch_size)  # per step
    own, norm = (params.steps - params.critic_warmup_steps) * updates, params.max_grad_norm
    actor = Optimizer(models.policy.parameters(), params.learning_rate, own, max_grad_norm=norm)
    every = params.steps * updates
    critic = Optimizer(
        models.critic.parameters(), params.critic_learning_rate, every, max_grad_norm=norm
    )
    normal = DomainNorm(params.reward_clip)
    generator = sampler(models.policy, params.seed)
    groups = params.batch_size // params.answers_per_prompt
    for step in track(range(params.steps), "train_ppo", params.steps):
        drawn = with_images(vision_cache, rng.choices(samples, k=groups))
        rollouts = roll_out(params, models, vision_cache.processor, drawn, normal, generator)
        numbers: dict[str, list[float]] = defaultdict(list)
        for _ in range(params.epochs):
            for chunk in shuffled(
                rollouts, params.minibatch_size // params.answers_per_prompt, rng
            ):
                learn_policy = step >= params.critic_warmup_steps
                for name, value in update(
                    params, models, actor, critic, chunk, learn_policy
                ).items():
                    numbers[name].append(value)
        log({**summary(rollouts), **{name: float(np.mean(x)) for name, x in numbers.items()}}, step)


def update(
    params: TrainPPOParams,
    models: Models,
    actor: Optimizer,
    critic: Optimizer,
    rollouts: Sequence[Rollout],
    learn_policy: bool,
) -> dict[str, float]:
    """One minibatch: the policy by eq. 3, the critic by eq. 4; every token weighs the same, in however many passes."""
    returns, old = (
        torch.cat(x) for x in zip(*((r.returns, r.log_probs) for r in rollouts), strict=True)
    )
    advantages = whiten(torch.cat([r.advantages for r in rollouts]))
    prompts, groups = [r.prompt for r in rollouts], [r.group for r in rollouts]
    models.policy.train()
    models.critic.train()
    numbers: dict[str, float] = defaultdict(float)
    start = 0
    for layout, images in microbatches(params, prompts, groups, models.policy.device):
        at = slice(start, start + len(layout.target_ids))
        start, share = at.stop, len(layout.target_ids) / len(returns)
        loss = value_loss(token_values(models.critic, layout, images), returns[at])
        critic.backward(share * loss)
        numbers["value_loss"] += share * loss.item()
        if learn_policy:
            log_probs = token_log_probs(models.policy, layout, images, params.temperature)
            loss, clip_fraction = policy_loss(log_probs, old[at], advantages[at], params.clip)
            actor.backward(share * loss)
            numbers["policy_loss"] += share * loss.item()
            numbers["clip_fraction"] += share * clip_fraction.item()
    critic.update()
    return {**numbers, "grad_norm": actor.update()["grad_norm"]} if learn_policy else dict(numbers)


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


def compare(
    params: TrainPPOParams, models: Models, vision_cache: VisionCache, samples: Sequence[Sample]
) -> Metrics:
    """Base against chat on the same held-out prompts: gold accuracy, reward, length; KL of chat from base.

    Where no answer to any prompt is known, there is no gold accuracy; without prompts there is nothing to compare.
    """
    metrics: Metrics = {"prompts": len(samples)}
    if not samples:
        return metrics
    for name, model in (("base", models.reference), ("chat", models.policy)):
        said = generate(
            model,
            vision_cache,
            samples,
            params.eval_samples,
            params.temperature,
            params.max_new_tokens,
            COMPARED_AT_ONCE,
            params.seed + 1,
            params.max_tokens_per_microbatch,
        )
        texts = [[a.text for a in row] for row in said]
        rewards = score(
            models.reward,
            vision_cache,
            samples,
            texts,
            COMPARED_AT_ONCE,
            params.max_tokens_per_microbatch,
        )
        metrics |= _gold(name, samples, texts)
        metrics[f"reward/{name}"] = float(np.mean(rewards))
        metrics[f"length/{name}"] = float(np.mean([len(a.ids) for row in said for a in row]))
    metrics["kl"] = divergence(
        params, models, vision_cache, samples, [[a.ids for a in row] for row in said]
    )
    return metrics


def _gold(name: str, samples: Sequence[Sample], texts: Sequence[Sequence[str]]) -> Metrics:
    """The share of a model's answers that are right, of all prompts to which an answer is known and by domain."""
    right: dict[str, list[float]] = defaultdict(list)
    for sample, row in zip(samples, texts, strict=True):
        if sample.gold is not None and sample.gold.check != "open":
            share = float(np.mean([check(sample.gold, text) or 0 for text in row]))
            right[f"gold/{name}"].append(share)
            right[f"gold/{name}/domain:{sample.domain}"].append(share)
    return {key: float(np.mean(shares)) for key, shares in sorted(right.items())}


@torch.no_grad()
def divergence(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    said: Sequence[Sequence[list[int]]],
) -> float:
    """KL(chat || base) on chat's own answers, nats per token."""
    total, count = 0.0, 0
    for start in range(0, len(samples), COMPARED_AT_ONCE):
        part = slice(start, start + COMPARED_AT_ONCE)
        prompts = with_images(vision_cache, samples[part])
        groups = [
            PrefixGroup(question.prompt, list(ids))
            for question, ids in zip(prompts, said[part], strict=True)
        ]
        for each in microbatches(params, prompts, groups, models.policy.device):
            read = (
                token_log_probs(m, *each, params.temperature)
                for m in (models.policy, models.reference)
            )
            gap = next(read) - next(read)
            total, count = total + gap.sum().item(), count + len(gap)
    return total / max(1, count)
