"""PPO of the chat model against the reward model (paper, section 4.1, equations 2-4).

Policy and reference start from the base, the critic from the reward model. The reward arrives with an answer's last
token; every token pays for its divergence from the reference. Where the paper is silent or misprinted: the ratio is
against the rollout policy (`losses.policy_loss`), rewards are standardised within their domain (the paper notes that
their averages differ), and an answer that never ends scores as the worst of its batch.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ixc.data.samples import BadRecord, Sample, balanced, read_samples, verifiable
from ixc.engine import distributed
from ixc.engine.batching import my_share, refuse_larger
from ixc.engine.checkpoints import Checkpoints, History, digest, digest_of
from ixc.engine.lora import adapter_of, add_lora, merge_lora
from ixc.engine.losses import policy_loss, value_loss, whiten
from ixc.engine.optim import Optimizer, seed_everything
from ixc.engine.sampling import generate
from ixc.engine.scoring import score
from ixc.engine.towers import Reader, refuse_unequal
from ixc.engine.trainer import Learner, Trainer, make_optimizer, share, update
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Lineage, Log, Metrics, ignore
from ixc.models import load_policy, load_scorer, save
from ixc.models.base import Processor
from ixc.models.kernels import refuse_attention, use_attention
from ixc.packing.attention import to_device
from ixc.packing.layout import PrefixGroup
from ixc.params import AttentionName, Precision, TrainPPOParams
from ixc.rl.rollouts import (
    DomainNorm,
    Models,
    Rollout,
    load_images,
    microbatch,
    microbatches,
    prompts_of,
    roll_out,
    token_log_probs,
    token_values,
    with_images,
)
from ixc.verifiers.rules import check

FREE = (
    "attention",
    "checkpoint_every",
    "eval_prompts",
    "eval_samples",
    "gradient_checkpointing",
    "offload",
    "processes",
    "vision_cache",
    "zero",
)
"""Parameters that change no number of the training, and may therefore differ when a run goes on."""
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
    lineage: Lineage | None = None,
) -> Metrics:
    """Train the chat model on the training prompts; compare it with the base on held-out prompts."""
    with distributed.joined(alone=params.zero >= 2):
        rng = seed_everything(params.seed)
        models, processor = ready(base, reward, params.precision, params.attention)
        vision_cache = VisionCache(models.reference, processor, media, params.vision_cache)

        # What is learned from, and what base and chat are compared on.
        samples = list(read_samples(prompts))
        questions = prompts_to_learn(read_samples(pairs), samples, pairs)
        held_out = balanced(verifiable(samples), params.eval_prompts, params.seed)
        refuse_long(params, vision_cache, held_out, params.eval_samples)

        # The states of this run, or of a killed one that it goes on from.
        folder = chat.with_name(f".{chat.name}.checkpoints")
        agreed = about(params, questions, base, reward)
        with Checkpoints(folder, agreed, lineage) as checkpoints:
            size = sum(value.nbytes for value in models.policy.state_dict().values())
            checkpoints.reserve(size)
            if params.lora is not None:
                for model in (models.policy, models.critic):
                    add_lora(model, params.lora.rank, params.lora.alpha)
            train(params, models, vision_cache, questions, rng, log, checkpoints)

        # One process writes the model, all compare; until both are done, the last state stays.
        adapter = adapter_of(models.policy, base)
        merge_lora(models.policy)
        if distributed.rank() == 0:
            with checkpoints.saving(chat):
                save(models.policy, processor, chat)
                if adapter is not None:
                    adapter.save(chat / "adapter")
        metrics = compare(params, models, vision_cache, held_out)
        checkpoints.remove()
    return metrics


def about(
    params: TrainPPOParams, samples: Sequence[Sample], base: Path, reward: Path
) -> dict[str, object]:
    """What a checkpoint must agree in: all that the training depends on."""
    fixed = {key: value for key, value in asdict(params).items() if key not in FREE}
    models = {"base": digest_of(base), "reward": digest_of(reward)}
    return {**fixed, **models, "prompts": digest(*samples)}


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
    named = {pair.prompt_id for pair in pairs} - {""}
    questions = [
        prompt
        for prompt in prompts
        if prompt.id in named or (prompt.gold is None and prompt.split == "train")
    ]
    if not questions:
        raise BadRecord(
            f"{pairs_path}: prompt_id: no pair names the prompt that it was made of; if an earlier version wrote the "
            "table, run `judge` and `validate` again; if all pairs are ready ones, add a source of prompts"
        )
    if lost := sorted(named - {prompt.id for prompt in questions}):
        raise BadRecord(
            f"{pairs_path}: prompt_id: {lost[0]!r} (and {len(lost) - 1:,} more): no prompt of this id; run `generate`, "
            "`judge` and `validate` again on these prompts"
        )
    return questions


def ready(
    base: Path, reward: Path, precision: Precision = "fp32", attention: AttentionName = "auto"
) -> tuple[Models, Processor]:
    """Policy and reference from the base, critic and reward from the reward model; and the processor.

    Whatever precision they are stored in, what is trained is kept in fp32: a step of AdamW is lost in bf16.

    Raises:
        NoAttention: as in `use_attention`.
        UnequalModels: base and reward model do not read pictures or texts alike.
    """
    # Two models are read; they must read images and texts alike.
    device = distributed.device()
    refuse_attention(attention, device)
    policy, processor = load_policy(base, device, torch.float32)
    judge, judges_processor = load_scorer(reward, device, torch.float32)
    refuse_unequal(Reader(base, policy, processor), Reader(reward, judge, judges_processor))

    # Four are made of them; of two the language model learns, the others stay what they are.
    models = Models(policy, copy.deepcopy(policy), copy.deepcopy(judge), judge)
    for frozen in (models.reference, models.reward):
        frozen.requires_grad_(False)
    for trained in (models.policy, models.critic):
        trained.freeze_vision()

    # Autocast in bf16; what is not trained may be kept in it as well.
    if precision == "bf16":
        for model in vars(models).values():
            model.compute_in_bf16()
        for frozen in (models.reference, models.reward):
            frozen.keep_in_bf16()
    computed_in = torch.bfloat16 if precision == "bf16" else torch.float32
    for model in vars(models).values():
        use_attention(model, attention, computed_in)
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
    checkpoints: Checkpoints,
) -> History:
    """Roll out, judge, update; `steps` times. The numbers of all steps, those of a killed run included."""
    vision_cache.prepare(samples)
    refuse_long(params, vision_cache, samples, params.answers_per_prompt)
    if params.gradient_checkpointing:
        models.policy.gradient_checkpointing_enable()
        models.critic.gradient_checkpointing_enable()

    # The policy learns in fewer steps than the critic; either schedule runs its course.
    updates = params.epochs * -(-params.batch_size // params.minibatch_size)  # per step
    learning_steps = params.steps - params.critic_warmup_steps
    actor = make_optimizer(
        models.policy,
        params.learning_rate,
        learning_steps * updates,
        zero=params.zero,
        offload=params.offload,
        max_grad_norm=params.max_grad_norm,
    )
    critic = make_optimizer(
        models.critic,
        params.critic_learning_rate,
        params.steps * updates,
        zero=params.zero,
        offload=params.offload,
        max_grad_norm=params.max_grad_norm,
    )
    normal = DomainNorm(params.reward_clip)
    trainer = Trainer(
        "train_ppo",
        {"policy": Learner(models.policy, actor), "critic": Learner(models.critic, critic)},
        params.steps,
        checkpoints,
        log,
        checkpoint_every=params.checkpoint_every,
        rng=rng,
        statistics={"rewards": normal},
    )
    trainer.resume()

    for step in trainer.steps():
        # Some prompts, with several answers of today's policy each, judged.
        num_prompts = params.batch_size // params.answers_per_prompt
        prompts = prompts_of(vision_cache, rng.choices(samples, k=num_prompts))
        rollouts = roll_out(params, models, vision_cache, prompts, normal, step)

        # Updates by minibatches of them; at first only the critic's.
        learn_policy = step >= params.critic_warmup_steps
        numbers: dict[str, list[float]] = defaultdict(list)
        for minibatch in minibatches(params, rollouts, rng):
            learned = learn(params, models, vision_cache, actor, critic, minibatch, learn_policy)
            for name, value in learned.items():
                numbers[name].append(value)

        # A step's numbers: of its rollouts, and the mean over its updates.
        means = {name: float(np.mean(values)) for name, values in numbers.items()}
        trainer.finish_step({**summary(rollouts), **means})

    # What is left are ordinary models.
    actor.close(models.policy)
    critic.close(models.critic)
    return trainer.history


def learn(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    actor: Optimizer,
    critic: Optimizer,
    rollouts: Sequence[Rollout],
    learn_policy: bool,
) -> dict[str, float]:
    """One minibatch: the policy by eq. 3, the critic by eq. 4.

    Every token weighs the same, in however many microbatches, on however many processes.
    """
    # Advantages are standardised over the minibatch, of which every process has all.
    sizes = [len(rollout.returns) for rollout in rollouts]
    advantages = whiten(torch.cat([rollout.advantages for rollout in rollouts])).split(sizes)
    models.policy.train()
    models.critic.train()

    # This process's share; of its prompts it needs the images.
    lengths = [len(rollout.group) for rollout in rollouts]
    rows = range(len(rollouts))
    mine = share(rows, lengths, params.max_tokens_per_microbatch, in_step=params.zero >= 2)
    load_images(vision_cache, [rollouts[i].prompt for batch in mine.microbatches for i in batch])

    device = models.policy.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    ids: list[list[str]] = []
    for number, batch in enumerate(mine.microbatches):
        chosen = [rollouts[i] for i in batch]
        inputs = microbatch([r.prompt for r in chosen], [r.group for r in chosen], device)
        returns = to_device(torch.cat([r.returns for r in chosen]), device)
        weight = len(returns) / sum(sizes) if number < mine.counted else 0.0
        ids.append([r.prompt.sample.id for r in chosen])

        # Eq. 4: the critic learns what an answer's rest brings.
        values = critic.forward(lambda inputs=inputs: token_values(models.critic, inputs))
        loss = value_loss(values, returns)
        critic.backward(weight * loss)
        totals[0] += weight * loss.detach()
        if not learn_policy:
            continue

        # Eq. 3: the policy takes what went better than the critic had expected, within the trust region.
        log_probs = actor.forward(
            lambda inputs=inputs: token_log_probs(models.policy, inputs, params.temperature)
        )
        old = to_device(torch.cat([r.log_probs for r in chosen]), device)
        gain = to_device(torch.cat([advantages[i] for i in batch]), device)
        surrogate = policy_loss(log_probs, old, gain, params.clip)
        actor.backward(weight * surrogate.loss)
        totals[1:] += weight * torch.stack([surrogate.loss, surrogate.clip_fraction]).detach()

    # All processes update alike, and report what all have seen.
    update(critic, ids)
    norm = update(actor, ids)["grad_norm"] if learn_policy else None
    value, policy, clip_fraction = distributed.summed(totals).tolist()
    if norm is None:
        return {"value_loss": value}
    return {
        "value_loss": value,
        "policy_loss": policy,
        "clip_fraction": clip_fraction,
        "grad_norm": norm,
    }


def minibatches(
    params: TrainPPOParams, rollouts: Sequence[Rollout], rng: random.Random
) -> Iterator[list[Rollout]]:
    """The prompts of a step in random order, `epochs` times."""
    size = params.minibatch_size // params.answers_per_prompt
    for _ in range(params.epochs):
        order = rng.sample(list(rollouts), len(rollouts))
        for start in range(0, len(order), size):
            yield order[start : start + size]


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
    completions: list[list[list[int]]] = []
    for name, model in (("base", models.reference), ("chat", models.policy)):
        answers = generate(
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
        completions, texts = [], []
        for row in answers:
            completions.append([answer.ids for answer in row])
            texts.append([answer.text for answer in row])
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
        lengths = [len(ids) for row in completions for ids in row]
        metrics[f"length/{name}"] = float(np.mean(lengths))
    metrics["kl"] = divergence(params, models, vision_cache, samples, completions)
    return metrics


def _gold(name: str, samples: Sequence[Sample], texts: Sequence[Sequence[str]]) -> Metrics:
    """The share of a model's answers that are right, of all prompts to which an answer is known and by domain."""
    right: dict[str, list[float]] = defaultdict(list)
    for sample, row in zip(samples, texts, strict=True):
        if sample.gold is not None and sample.gold.check != "open":
            accuracy = float(np.mean([check(sample.gold, text) or 0 for text in row]))
            right[f"gold/{name}"].append(accuracy)
            right[f"gold/{name}/domain:{sample.domain}"].append(accuracy)
    return {key: float(np.mean(values)) for key, values in sorted(right.items())}


@torch.no_grad()
def divergence(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    completions: Sequence[Sequence[list[int]]],
) -> float:
    """KL(chat || base) on chat's own answers, nats per token; the processes share the prompts out."""
    # Each part of the prompts is one process's: its sum over tokens, and their number.
    starts = range(0, len(samples), COMPARED_AT_ONCE)
    sums: dict[int, tuple[float, int]] = {}
    for start in (starts[number] for number in my_share([1] * len(starts))):
        part = slice(start, start + COMPARED_AT_ONCE)
        prompts = with_images(vision_cache, samples[part])
        groups = [
            PrefixGroup(question.prompt, list(ids))
            for question, ids in zip(prompts, completions[part], strict=True)
        ]
        total, count = 0.0, 0
        for batch in microbatches(params, prompts, groups, models.policy.device):
            chat = token_log_probs(models.policy, batch, params.temperature)
            base = token_log_probs(models.reference, batch, params.temperature)
            total, count = total + (chat - base).sum().item(), count + len(chat)
        sums[start] = total, count

    # In the order of the prompts, whoever summed.
    for others in distributed.gathered(sums):
        sums |= others
    totals, counts = zip(*(sums[start] for start in starts), strict=True)
    return sum(totals) / max(1, sum(counts))
