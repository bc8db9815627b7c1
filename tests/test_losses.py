"""The formulae, by hand."""

import math

import pytest
import torch

from ixc.engine.losses import (
    bradley_terry_loss,
    centering_loss,
    generalized_advantages,
    policy_loss,
    value_loss,
    whiten,
)

CHOSEN, REJECTED = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])


def test_equal_rewards_cost_ln_2():
    torch.testing.assert_close(bradley_terry_loss(CHOSEN, CHOSEN), torch.tensor(math.log(2)))


def test_bradley_terry_by_hand():
    # ln(1 + e^-1.5) = 0.201413; ln(1 + e^2) = 2.126928; mean 1.164171
    torch.testing.assert_close(bradley_terry_loss(CHOSEN, REJECTED), torch.tensor(1.1641706))


def test_only_the_difference_counts():
    torch.testing.assert_close(
        bradley_terry_loss(CHOSEN + 7, REJECTED + 7), bradley_terry_loss(CHOSEN, REJECTED)
    )


def test_a_hopeless_pair_costs_its_margin_and_not_infinity():
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


def test_a_margin_asks_for_a_larger_lead():
    # ahead by 1.5 - 0.5 = 1: ln(1 + e^-1) = 0.313262; by -2 - 0.5: ln(1 + e^2.5) = 2.578889; mean 1.446076
    torch.testing.assert_close(
        bradley_terry_loss(CHOSEN, REJECTED, margin=0.5), torch.tensor(1.4460756)
    )


def test_label_smoothing_is_the_loss_of_labels_that_are_wrong_so_often():
    right, wrong = bradley_terry_loss(CHOSEN, REJECTED), bradley_terry_loss(REJECTED, CHOSEN)
    got = bradley_terry_loss(CHOSEN, REJECTED, label_smoothing=0.1)
    torch.testing.assert_close(got, 0.9 * right + 0.1 * wrong)


def test_focal_weighs_down_what_is_told_apart_and_nothing_else():
    # P = 1/(1 + e^-1.5) = 0.817574: (1 - 2 * 0.317574)^2 = 0.133118, times 0.201413: 0.026812
    # P = 0.119203 < 1/2: weight 1, 2.126928; mean 1.076870
    torch.testing.assert_close(
        bradley_terry_loss(CHOSEN, REJECTED, focal=2.0), torch.tensor(1.0768699)
    )


@pytest.mark.parametrize(
    "options", [{}, {"focal": 0.5}, {"label_smoothing": 0.1, "focal": 2.0, "margin": 1.0}]
)
@pytest.mark.parametrize("lead", [-500.0, -0.0, 500.0])
def test_no_lead_however_large_makes_a_gradient_that_is_no_number(
    lead: float, options: dict[str, float]
):
    chosen = torch.tensor([lead], requires_grad=True)
    bradley_terry_loss(chosen, torch.zeros(1), **options).backward()
    assert chosen.grad is not None and chosen.grad.isfinite().all()


def test_centering_by_hand():
    # (2 + 0.5)^2 = 6.25; (-1 + 1)^2 = 0; mean 3.125
    torch.testing.assert_close(centering_loss(CHOSEN, REJECTED), torch.tensor(3.125))


def test_gae_by_hand_with_padding():
    # gamma 1, lambda 0.5, values 0.5 and 0.25, reward 1 at the end
    # t=1: 1 + 0 - 0.25 = 0.75;  t=0: 0 + 0.25 - 0.5 + 0.5 * 0.75 = 0.125;  padding: 0, whatever stands there
    # second row, one token: 2 - 3 = -1
    rewards = torch.tensor([[0.0, 1.0, 9.0], [2.0, 9.0, 9.0]])
    values = torch.tensor([[0.5, 0.25, 9.0], [3.0, 9.0, 9.0]])
    got = generalized_advantages(rewards, values, torch.tensor([2, 1]), gamma=1.0, lam=0.5)
    torch.testing.assert_close(got, torch.tensor([[0.125, 0.75, 0.0], [-1.0, 0.0, 0.0]]))


def test_gae_discounts_the_next_value_and_the_next_advantage():
    # t=1: 1 - 2 = -1;  t=0: 0 + 0.5 * 2 - 0 + 0.5 * 0.8 * -1 = 0.6
    got = generalized_advantages(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[0.0, 2.0]]),
        torch.tensor([2]),
        gamma=0.5,
        lam=0.8,
    )
    torch.testing.assert_close(got, torch.tensor([[0.6, -1.0]]))


def test_with_lambda_1_an_advantage_is_the_discounted_return_less_the_value():
    rewards, values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    got = generalized_advantages(rewards, values, torch.full((3,), 5), gamma=0.9, lam=1.0)
    powers = 0.9 ** torch.arange(5)
    returns = torch.stack([(rewards[:, t:] * powers[: 5 - t]).sum(1) for t in range(5)], 1)
    torch.testing.assert_close(got + values, returns)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 3.0, -3.0, 0.0),
        (1.1, 1.0, -1.1, 0.0),
        (1.5, 1.0, -1.2, 1.0),  # good enough: no more to gain beyond 1.2
        (0.5, 1.0, -0.5, 1.0),  # a good token made rare: the way back stays open
        (1.5, -1.0, 1.5, 1.0),  # a bad token made frequent: likewise
        (0.5, -1.0, 0.8, 1.0),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: float):
    got = policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), clip=0.2
    )
    torch.testing.assert_close(got.loss, torch.tensor(loss))
    assert got.clip_fraction == clipped


def test_policy_loss_makes_good_tokens_likelier_and_bad_ones_rarer():
    log_probs = torch.zeros(2, requires_grad=True)
    policy_loss(log_probs, torch.zeros(2), torch.tensor([1.0, -3.0]), clip=0.2).loss.backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([-0.5, 1.5]))


def test_a_clipped_token_does_not_pull():
    log_probs = torch.tensor([math.log(1.5), math.log(0.5)], requires_grad=True)
    policy_loss(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=0.2).loss.backward()
    torch.testing.assert_close(log_probs.grad, torch.zeros(2))


@pytest.mark.parametrize("gap", [-1000.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_no_gap_however_large_makes_a_policy_loss_that_is_no_number(gap: float, advantage: float):
    log_probs = torch.tensor([gap, 0.0], requires_grad=True)
    got = policy_loss(log_probs, torch.zeros(2), torch.full((2,), advantage), clip=0.2)
    got.loss.backward()
    assert got.loss.isfinite() and got.clip_fraction == 0.5
    assert (
        log_probs.grad is not None
        and log_probs.grad.isfinite().all()
        and log_probs.grad[1] == -advantage / 2
    )


def test_value_loss_by_hand():
    # (1 - 3)^2 = 4; (2 - 2)^2 = 0; mean 2
    torch.testing.assert_close(
        value_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])), torch.tensor(2.0)
    )


def test_whitened_is_mean_0_and_variance_1():
    got = whiten(torch.tensor([1.0, 2.0, 6.0, 11.0]))
    assert got.mean().item() == pytest.approx(0, abs=1e-6)
    assert got.var(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_one_token_or_equal_advantages_whiten_to_0():
    torch.testing.assert_close(whiten(torch.full((4,), 3.0)), torch.zeros(4))
    torch.testing.assert_close(whiten(torch.tensor([3.0])), torch.zeros(1))
