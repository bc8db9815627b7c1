"""Sets with several answers to one prompt, each rated in several respects: UltraFeedback and VLFeedback."""

import math
import random
from statistics import mean
from typing import Any, Literal, NamedTuple

from ixc.data.sources.native import Record, Unusable, take

Rule = Literal["worst", "random"]
"""Against which answer the best one stands: the worst, or a random one that was rated lower."""


class Rated(NamedTuple):
    """An answer and the mean of its ratings."""

    score: float
    text: str


def best_and_other(record: Record, rule: Rule, rng: random.Random) -> tuple[Rated, Rated]:
    """The best-rated answer, and one that was rated lower.

    By the mean of all respects: many overall scores of 10 were faults of UltraFeedback's first release.

    Raises:
        Unusable: fewer than two answers have all ratings, or all have the same mean.
    """
    completions = _completions(take(record, "completions", object))
    rated = [answer for answer in map(_rated, completions) if answer]
    if len(rated) < 2:
        raise Unusable(
            f"completions: {len(rated)} with a text and all ratings; two are needed: remove the row"
        )

    # Of equal means the greater text is taken: the order of the answers must not matter.
    best = max(rated)
    lower = sorted(answer for answer in rated if answer.score < best.score)
    if not lower:
        raise Unusable(
            "completions: all have the same ratings, so that none is better; remove the row"
        )
    other = lower[0] if rule == "worst" else rng.choice(lower)
    return best, other


def _completions(value: Any) -> list[Record]:
    """`datasets` stores a sequence of records as a record of lists."""
    if not isinstance(value, dict):
        return value
    rows = zip(*value.values(), strict=True)
    return [dict(zip(value, fields, strict=True)) for fields in rows]


def _rated(completion: Record) -> Rated | None:
    text = completion.get("response")
    respects = take(completion, "annotations", dict)
    try:
        score = mean(float(respect["Rating"]) for respect in respects.values())
    except (TypeError, ValueError, LookupError):  # "N/A": not rated in every respect
        return None
    if isinstance(text, str) and text.strip() and math.isfinite(score):
        return Rated(score, text)
    return None
