"""What a stage reports: numbers by name, and curves through `log(metrics, step)`."""

import math
from collections.abc import Callable, Iterable, Sequence

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
    ahead = np.asarray(margins, dtype=float)
    claimed, right = 1 / (1 + np.exp(-np.abs(ahead))), ahead > 0
    place = np.minimum(((claimed - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=claimed - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(ahead))
