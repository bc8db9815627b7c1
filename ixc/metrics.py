"""What a stage reports: numbers by name, and curves through `log(metrics, step)`."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

Metrics = dict[str, float | int]
Log = Callable[[dict[str, float], int], None]


NO_NUMBER = "no number: a weight is broken, or the model overflows; load it with dtype float32, or fetch it again"


class BadScore(ValueError):
    """A reward that is no number: whose it is, and what to do."""


def non_finite(rewards: Iterable[float]) -> str:
    """Why rewards are none: with NaN every comparison is false, and nothing says so. Empty if all are numbers.

    >>> non_finite([0.5, -2.0]), non_finite([float("inf")])[:20]
    ('', 'score inf: no number')
    """
    bad = [reward for reward in rewards if not math.isfinite(reward)]
    return f"score {bad[0]}: {NO_NUMBER}" if bad else ""


def ignore(metrics: dict[str, float], step: int) -> None:
    """A `Log` for callers who want no curves."""


def calibration_error(margins: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error of pairs, a fraction: how far confidence and accuracy are apart.

    A model that is ahead by `margin` claims to be right with probability `sigmoid(|margin|)`. Pairs are put into bins
    of equal width of that claim, 1/2 to 1; the error is the mean distance of a bin's claim from its accuracy, by pairs.

    Args:
        margins: reward of the better answer minus the other's; the model is right where it is positive.

    Source: Guo et al., arXiv:1706.04599, eq. 3.

    >>> round(calibration_error([30.0, 30.0, 30.0, -30.0]), 6)
    0.25
    """
    claimed, right, counts = reliability(margins, bins)
    gaps = []
    for claim, share, count in zip(claimed, right, counts, strict=True):
        gaps.append(count * abs(claim - share))
    return float(sum(gaps) / len(margins))


class Reliability(NamedTuple):
    """What a model claims and what is right, bin by bin; empty bins are left out."""

    claimed: list[float]
    """Mean probability that the model gives its own choice."""
    right: list[float]
    """Share of its choices that are right."""
    counts: list[int]
    """Pairs."""


def reliability(margins: Sequence[float], bins: int = 10) -> Reliability:
    """The bins of `calibration_error`."""
    ahead = np.asarray(margins, dtype=float)
    claimed = 1 / (1 + np.exp(-np.abs(ahead)))
    is_right = ahead > 0

    # Claims are at least 1/2; one of exactly 1 belongs to the last bin.
    place = ((claimed - 0.5) * 2 * bins).astype(int)
    place = np.minimum(place, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sum_claimed = np.bincount(place, weights=claimed, minlength=bins)
    num_right = np.bincount(place, weights=is_right, minlength=bins)

    filled = counts > 0
    return Reliability(
        claimed=(sum_claimed[filled] / counts[filled]).tolist(),
        right=(num_right[filled] / counts[filled]).tolist(),
        counts=counts[filled].tolist(),
    )


def accuracy_interval(
    right: Sequence[bool], prompts: Sequence[Hashable], num_resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % interval of an accuracy, fractions, where several pairs may come from one prompt.

    Pairs of one prompt are right or wrong together. A bootstrap that draws whole prompts finds the accuracy's variance,
    and that, how many independent pairs these pairs are worth. Wilson's interval of so many keeps its coverage where
    the bootstrap's own percentiles lose it: near 0 and 1, and with few prompts (Student's t in place of the normal).
    Where all pairs are right, or all wrong, nothing varies, and a prompt counts as one pair.

    Args:
        right: whether the model is, pair by pair.
        prompts: the prompt of each pair.
        num_resamples: of the bootstrap.

    Source: Korn and Graubard, Survey Methodology 24 (1998), for the effective number; Wilson, JASA 22 (1927).

    >>> low, high = accuracy_interval([True] * 10, range(10), 100, np.random.default_rng(0))
    >>> round(low, 2), high
    (0.66, 1.0)
    """
    from scipy.special import stdtrit  # takes a second, which only evaluation has to spend

    # Pairs and right pairs of each prompt.
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_of_pair = [number[prompt] for prompt in prompts]
    sizes = np.bincount(prompt_of_pair)
    hits = np.bincount(prompt_of_pair, weights=np.asarray(right, dtype=float))
    num_prompts, num_pairs = len(sizes), len(right)
    accuracy = hits.sum() / num_pairs
    freedom = num_prompts - 1

    # How many independent pairs would have this variance; never more than there are pairs.
    effective = num_pairs
    if freedom and 0 < accuracy < 1:
        variance = _bootstrap_variance(hits, sizes, num_resamples, rng) * num_prompts / freedom
        if variance:
            effective = min(num_pairs, accuracy * (1 - accuracy) / variance)
    else:
        effective = num_pairs**2 / np.square(sizes).sum()

    z = stdtrit(max(freedom, 1), 0.975)
    return _wilson(float(accuracy), float(effective), float(z))


def _bootstrap_variance(
    hits: np.ndarray, sizes: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> float:
    """Variance of the accuracy over resamples of the prompts.

    Prompts of equal size with equally many right pairs are alike: how often each kind is drawn is multinomial.
    """
    prompts = np.stack([hits, sizes], 1)
    kinds, counts = np.unique(prompts, axis=0, return_counts=True)
    shares = counts / len(sizes)
    drawn = rng.multinomial(len(sizes), shares, num_resamples)
    num_right = drawn @ kinds[:, 0]
    num_pairs = drawn @ kinds[:, 1]
    return float(np.var(num_right / num_pairs))


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` trials."""
    shrinkage = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrinkage
    deviation = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    reach = z / shrinkage * deviation

    # Rounding must not put the share itself outside.
    low = min(share, centre - reach)
    high = max(share, centre + reach)
    return max(0.0, low), min(1.0, high)
