"""The formulae: pure, shaped, sourced.

Letters: P pairs, M answer tokens of a batch laid end to end, R answers.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def bradley_terry_loss(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    focal: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean surprise, in nats per pair, that the chosen answer beats the rejected one.

    `-log sigmoid(chosen - rejected)`: only the difference counts, so a constant added to every reward changes
    nothing, and two equal rewards cost ln 2. The pairs of a prompt with K answers (K-wise: up to K (K - 1) / 2 of them)
    are pairs like any others; what they save is in the layout. With the defaults this is the paper's eq. 1.

    Args:
        margin: what the chosen reward must be ahead by (Llama 2, arXiv:2307.09288, eq. 2).
        label_smoothing: share of the pairs that are taken to be labelled the wrong way round (conservative loss;
            Mitchell 2023, "A note on DPO with noisy preferences").
        focal: exponent of `1 - 2 max(P - 1/2, 0)`, by which a pair that is already told apart with probability P
            counts less (InternLM2, arXiv:2403.17297, section 4.2.1: 2).

    Source: InternLM-XComposer2.5-Reward, arXiv:2501.12368, eq. 1.
    """
    lead = chosen - rejected - margin
    loss = _surprise(lead, focal)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * _surprise(-lead, focal)
    return loss.mean()


def _surprise(lead: Float[Tensor, " P"], focal: float) -> Float[Tensor, " P"]:
    """`-log P` with its focal weight: `1 - 2 max(P - 1/2, 0)` is `min(1, 2 (1 - P))`, whose log is never infinite."""
    surprise = -F.logsigmoid(lead)
    return (
        surprise * (focal * (F.logsigmoid(-lead) + math.log(2)).clamp(max=0)).exp()
        if focal
        else surprise
    )


def centering_loss(chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """Mean squared sum of a pair's rewards: pulls them around zero, so that rewards compare between prompts.

    Source: Eisenstein et al., arXiv:2312.09244, section 2.
    """
    return (chosen + rejected).square().mean()


def generalized_advantages(
    rewards: Float[Tensor, "R T"],
    values: Float[Tensor, "R T"],
    lengths: Int[Tensor, " R"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "R T"]:
    """How much better each token was than the critic expected, in units of reward.

    `delta_t = r_t + gamma V(s_t+1) - V(s_t)`, `A_t = delta_t + gamma lam A_t+1`; after an answer's last token both
    V and A are 0. Returns for the critic are `A_t + V(s_t)`. Padding gets 0.

    Args:
        rewards: per token.
        values: the critic's, of the state before each token.
        lengths: tokens of each answer.
        lam: the paper's beta.

    Source: arXiv:2501.12368, eq. 2; GAE, arXiv:1506.02438.
    """
    # Padding counts for nothing, whatever stands there.
    real = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    rewards, values = rewards * real, values * real
    later, advantage = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    advantages = torch.zeros_like(rewards)
    # From the last token back: `later` is the value after token t, `advantage` that of the token after it.
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * later - values[:, t]
        advantage = (delta + gamma * lam * advantage) * real[:, t]
        advantages[:, t], later = advantage, values[:, t]
    return advantages


MAX_LOG_RATIO = 20.0
"""Nats; a ratio beyond its exponential is no longer told apart. fp32 overflows at 88; verl clamps at 20 likewise."""


class PolicyLoss(NamedTuple):
    """PPO's loss, and how far the policy went."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose ratio left the trust region."""


def policy_loss(
    log_probs: Float[Tensor, " M"],
    old_log_probs: Float[Tensor, " M"],
    advantages: Float[Tensor, " M"],
    clip: float,
) -> PolicyLoss:
    """Minus the clipped surrogate, mean over tokens.

    `-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)`. The ratio is against the rollout policy: with the paper's
    pi_ref it would clip every token once the policy has moved; the reference enters through the KL penalty. Its
    logarithm is clamped before it is exponentiated: one token that has become rare must not make the loss infinite.

    Args:
        log_probs, old_log_probs: of the policy as it is and as it was sampled from; both at the sampling temperature.

    Source: arXiv:2501.12368, eq. 3; PPO, arXiv:1707.06347, eq. 7.
    """
    ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    return PolicyLoss(loss, (ratio != clipped).float().mean())


def value_loss(values: Float[Tensor, " M"], returns: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """Mean squared error of the critic, squared units of reward. Source: arXiv:2501.12368, eq. 4."""
    return F.mse_loss(values, returns)


def whiten(x: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Mean 0, variance 1; equal values become 0."""
    return (x - x.mean()) / (x.std(correction=0) + 1e-6)
