"""Several judges as one: the majority, how far they agree, and what each is biased by."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ixc.data.samples import Verdict
from ixc.metrics import Metrics
from ixc.stages.judge.questions import verdict
from ixc.stages.judge.store import Judgement, Winner, slug


class Opinion(NamedTuple):
    """What one judge said about a pair, in both orders."""

    reference_first: Judgement
    reference_second: Judgement
    longer: int
    """Which answer has more words: 1 the reference, -1 the other, 0 neither."""

    @property
    def verdict(self) -> Verdict:
        """Both orders as one, the reference being `chosen`."""
        return verdict(self.reference_first.model, self.reference_first, self.reference_second)


def majority(opinions: Sequence[Verdict], judges: int) -> Verdict | None:
    """The verdict of more than half of all `judges`, a tie where they are split; None while votes that matter are due.

    The judges' names, orders and costs are joined; the reason is that of the first who is of the majority.
    """
    votes = Counter(opinion.winner for opinion in opinions)
    winner: Any = next(
        (opinion.winner for opinion in opinions if 2 * votes[opinion.winner] > judges), None
    )
    if winner is None and len(opinions) < judges:
        return None
    agreeing = [opinion.reason for opinion in opinions if opinion.winner == winner]
    return Verdict(
        winner=winner or "tie",
        judge=" + ".join(opinion.judge for opinion in opinions),
        orders=tuple(order for opinion in opinions for order in opinion.orders),
        reason=agreeing[0] if agreeing else "The judges are split.",
        cost=sum(opinion.cost for opinion in opinions),
    )


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement of two raters beyond chance: 1 perfect, 0 as by chance; None if both know one and the same word only.

    Source: J. Cohen, A coefficient of agreement for nominal scales, 1960.

    >>> cohen_kappa("yyn", "yyn"), cohen_kappa("yn", "ny")
    (1.0, -1.0)
    """
    total = len(first)
    if not total:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / total
    shares = Counter(first), Counter(second)
    by_chance = sum(shares[0][word] * shares[1][word] for word in shares[0]) / total**2
    return _beyond(observed, by_chance)


def fleiss_kappa(ratings: Sequence[Sequence[str]]) -> float | None:
    """Agreement of any number of raters beyond chance; None where all words are one.

    Args:
        ratings: for each subject what its raters said, as many for every subject, at least two.

    Source: J. L. Fleiss, Measuring nominal scale agreement among many raters, 1971.
    """
    if not ratings:
        return None
    raters = len(ratings[0])
    counts = [Counter(row) for row in ratings]
    pairs = raters * (raters - 1)
    observed = sum(n * (n - 1) for row in counts for n in row.values()) / (pairs * len(ratings))
    by_chance = sum((n / (raters * len(ratings))) ** 2 for n in sum(counts, Counter()).values())
    return _beyond(observed, by_chance)


def _beyond(observed: float, by_chance: float) -> float | None:
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def agreement(verdicts: Iterable[Sequence[Verdict]], judges: int) -> Metrics:
    """How far the judges agree on the pairs that all have judged; nothing for a single judge."""
    rows = [[one.winner for one in row] for row in verdicts if len(row) == judges]
    if judges < 2 or not rows:
        return {}
    found: Metrics = {"llm/agreement": sum(len(set(row)) == 1 for row in rows) / len(rows)}
    name, kappa = "fleiss_kappa", fleiss_kappa(rows)
    if judges == 2:
        name, kappa = "cohen_kappa", cohen_kappa([row[0] for row in rows], [row[1] for row in rows])
    return found if kappa is None else found | {f"llm/{name}": kappa}


def pairwise(verdicts: Iterable[Sequence[Verdict]], judges: Sequence[str]) -> Metrics:
    """Cohen's kappa of every two of three or more judges, on the pairs that both have judged: it tells the odd one."""
    if len(judges) < 3:
        return {}
    rows = [{one.judge: one.winner for one in row} for row in verdicts]
    found: Metrics = {}
    for a, b in itertools.combinations(judges, 2):
        both = [(row[a], row[b]) for row in rows if a in row and b in row]
        kappa = cohen_kappa([first for first, _ in both], [second for _, second in both])
        if kappa is not None:
            found[f"llm/cohen_kappa/{slug(a)}/{slug(b)}"] = kappa
    return found


def biases(opinions: Mapping[str, Sequence[Opinion]]) -> Metrics:
    """For each judge, by name: `consistency`, `position_bias` and `length_bias`.

    `consistency` is the share of pairs with the same winner in both orders. The biases run from -1 to 1 and are
    0 for a judge without them: judgements won by the answer shown first minus those won by the second, as a
    share; and verdicts won by the longer answer minus those won by the shorter, as a share of those with a
    winner and unequal lengths - in which the longer may well have been better.
    """
    found: Metrics = {}
    for model, rows in opinions.items():
        for name, value in (
            ("consistency", _consistency(rows)),
            ("position_bias", _position_bias(rows)),
            ("length_bias", _length_bias(rows)),
        ):
            if value is not None:
                found[f"llm/{slug(model)}/{name}"] = value
    return found


def _consistency(rows: Sequence[Opinion]) -> float | None:
    return _mean([row.verdict.orders[0] == row.verdict.orders[1] for row in rows])


def _position_bias(rows: Sequence[Opinion]) -> float | None:
    sign: dict[Winner | None, int] = {"first": 1, "second": -1, "tie": 0}
    return _mean(
        [sign[said.winner] for row in rows for said in (row.reference_first, row.reference_second)]
    )


def _length_bias(rows: Sequence[Opinion]) -> float | None:
    sign = {"chosen": 1, "rejected": -1, "tie": 0}
    return _mean([won for row in rows if (won := sign[row.verdict.winner] * row.longer)])


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
