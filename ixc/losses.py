"""The formulae: pure, shaped, sourced.

Letters: P pairs, M answer tokens of a batch laid end to end, R answers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def bradley_terry_loss(chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """Mean surprise, in nats per pair, that the chosen answer beats the rejected one.

    `-log sigmoid(chosen - rejected)`: only the difference counts, so a constant added to every reward changes
    nothing, and two equal rewards cost ln 2.

    Source: InternLM-XComposer2.5-Reward, arXiv:2501.12368, eq. 1.
    """
    return -F.logsigmoid(chosen - rejected).mean()


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
    real = torch.arange(rewards.shape[1]) < lengths[:, None]
    rewards, values = rewards * real, values * real
    later, advantage = torch.zeros(len(rewards)), torch.zeros(len(rewards))
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * later - values[:, t]
        advantage = (delta + gamma * lam * advantage) * real[:, t]
        advantages[:, t], later = advantage, values[:, t]
    return advantages


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
    pi_ref it would clip every token once the policy has moved; the reference enters through the KL penalty.

    Source: arXiv:2501.12368, eq. 3; PPO, arXiv:1707.06347, eq. 7.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    return PolicyLoss(loss, (ratio != clipped).float().mean())


def value_loss(values: Float[Tensor, " M"], returns: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """Mean squared error of the critic, squared units of reward. Source: arXiv:2501.12368, eq. 4."""
    return F.mse_loss(values, returns)


def whiten(x: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Mean 0, variance 1; equal values become 0."""
    return (x - x.mean()) / (x.std(correction=0) + 1e-6)
