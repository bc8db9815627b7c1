"""What a stage reports: numbers by name, and curves through `log(metrics, step)`."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Metrics = dict[str, float | int]
Log = Callable[[dict[str, float], int], None]


@dataclass
class Lineage:
    """Whose numbers a training's are; a task gives it to the stage, and reads it afterwards."""

    run_id: str = ""
    """The run that the numbers are kept under, by a name that the states of the training keep."""
    resumed_from: str = ""
    """The run whose state this one goes on from; empty: it began anew."""


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
    gaps = [
        count * abs(claim - share)
        for claim, share, count in zip(claimed, right, counts, strict=True)
    ]
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
    claimed, right = 1 / (1 + np.exp(-np.abs(ahead))), ahead > 0
    place = np.minimum(((claimed - 0.5) * 2 * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    claims, hits = (
        np.bincount(place, weights=values, minlength=bins) for values in (claimed, right)
    )
    return Reliability(
        (claims[filled] / counts[filled]).tolist(),
        (hits[filled] / counts[filled]).tolist(),
        counts[filled].tolist(),
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

    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_of_pair = [number[prompt] for prompt in prompts]
    sizes = np.bincount(prompt_of_pair)
    hits = np.bincount(prompt_of_pair, weights=np.asarray(right, dtype=float))
    num_prompts, num_pairs = len(sizes), len(right)
    accuracy = hits.sum() / num_pairs
    freedom = num_prompts - 1

    if freedom and 0 < accuracy < 1:
        variance = _bootstrap_variance(hits, sizes, num_resamples, rng) * num_prompts / freedom
        effective = min(num_pairs, accuracy * (1 - accuracy) / variance) if variance else num_pairs
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
    kinds, counts = np.unique(np.stack([hits, sizes], 1), axis=0, return_counts=True)
    drawn = rng.multinomial(len(sizes), counts / len(sizes), num_resamples)
    return float(np.var((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])))


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` trials."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = (
        z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    )
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))
