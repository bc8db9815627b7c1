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
    """One judge's judgements of a pair, in both orders."""

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
    winner: Any = None
    for candidate, count in votes.items():
        if 2 * count > judges:
            winner = candidate
    # Without a majority a vote that is still due may bring one about.
    if winner is None and len(opinions) < judges:
        return None

    # The reason of the first who is of that opinion.
    agreeing = [opinion.reason for opinion in opinions if opinion.winner == winner]
    reason = agreeing[0] if agreeing else "The judges are split."
    orders = tuple(order for opinion in opinions for order in opinion.orders)
    return Verdict(
        winner=winner or "tie",
        judge=" + ".join(opinion.judge for opinion in opinions),
        orders=orders,
        reason=reason,
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
    same = sum(a == b for a, b in zip(first, second, strict=True))
    counts_first, counts_second = Counter(first), Counter(second)
    # Two raters who draw their words at random, each as often as it uses them, agree so often.
    by_chance = 0
    for word, count in counts_first.items():
        by_chance += count * counts_second[word]
    return _beyond(same / total, by_chance / total**2)


def fleiss_kappa(ratings: Sequence[Sequence[str]]) -> float | None:
    """Agreement of any number of raters beyond chance; None where all words are one.

    Args:
        ratings: for each subject its raters' words, as many for every subject, at least two.

    Source: J. L. Fleiss, Measuring nominal scale agreement among many raters, 1971.
    """
    if not ratings:
        return None
    num_raters, num_subjects = len(ratings[0]), len(ratings)
    totals: Counter[str] = Counter()
    agreeing_pairs = 0
    for row in ratings:
        counts = Counter(row)
        totals += counts
        agreeing_pairs += sum(n * (n - 1) for n in counts.values())

    # Of all ordered pairs of raters, and of two words drawn from all that were used.
    num_pairs = num_raters * (num_raters - 1) * num_subjects
    observed = agreeing_pairs / num_pairs
    by_chance = sum((n / (num_raters * num_subjects)) ** 2 for n in totals.values())
    return _beyond(observed, by_chance)


def _beyond(observed: float, by_chance: float) -> float | None:
    """The share of the agreement beyond chance that there is; None where chance alone explains all."""
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def agreement(verdicts: Iterable[Sequence[Verdict]], judges: int) -> Metrics:
    """How far the judges agree on the pairs that all have judged; nothing for a single judge."""
    complete = [row for row in verdicts if len(row) == judges]
    if judges < 2 or not complete:
        return {}
    rows = []
    for row in complete:
        rows.append([verdict.winner for verdict in row])
    unanimous = sum(len(set(row)) == 1 for row in rows)
    metrics: Metrics = {"llm/agreement": unanimous / len(rows)}

    # Kappa discounts what judges with the same habits would agree on anyway.
    if judges == 2:
        name = "cohen_kappa"
        kappa = cohen_kappa([row[0] for row in rows], [row[1] for row in rows])
    else:
        name = "fleiss_kappa"
        kappa = fleiss_kappa(rows)
    if kappa is not None:
        metrics[f"llm/{name}"] = kappa
    return metrics


def pairwise(verdicts: Iterable[Sequence[Verdict]], judges: Sequence[str]) -> Metrics:
    """Cohen's kappa of every two of three or more judges, on the pairs that both have judged: it tells the odd one."""
    if len(judges) < 3:
        return {}
    rows = []
    for row in verdicts:
        rows.append({verdict.judge: verdict.winner for verdict in row})

    # Not every judge has judged every pair.
    metrics: Metrics = {}
    for a, b in itertools.combinations(judges, 2):
        both = [row for row in rows if a in row and b in row]
        kappa = cohen_kappa([row[a] for row in both], [row[b] for row in both])
        if kappa is not None:
            metrics[f"llm/cohen_kappa/{slug(a)}/{slug(b)}"] = kappa
    return metrics


def biases(opinions: Mapping[str, Sequence[Opinion]]) -> Metrics:
    """For each judge, by name: `consistency`, `position_bias` and `length_bias`.

    `consistency` is the share of pairs with the same winner in both orders. The biases run from -1 to 1 and are
    0 for a judge without them: judgements won by the answer that comes first minus those won by the second, as a
    share; and verdicts won by the longer answer minus those won by the shorter, as a share of those with a
    winner and unequal lengths - in which the longer may well have been better.
    """
    # Without pairs there is nothing to measure, and no metric.
    measures = {
        "consistency": _consistency,
        "position_bias": _position_bias,
        "length_bias": _length_bias,
    }
    metrics: Metrics = {}
    for model, rows in opinions.items():
        for name, measure in measures.items():
            value = measure(rows)
            if value is not None:
                metrics[f"llm/{slug(model)}/{name}"] = value
    return metrics


def _consistency(rows: Sequence[Opinion]) -> float | None:
    """Share of the pairs with one winner in both orders."""
    same = []
    for row in rows:
        first_order, second_order = row.verdict.orders
        same.append(first_order == second_order)
    return _mean(same)


def _position_bias(rows: Sequence[Opinion]) -> float | None:
    """Judgements won by the first answer minus those won by the second, as a share."""
    sign: dict[Winner | None, int] = {"first": 1, "second": -1, "tie": 0}
    signs = []
    for row in rows:
        signs.append(sign[row.reference_first.winner])
        signs.append(sign[row.reference_second.winner])
    return _mean(signs)


def _length_bias(rows: Sequence[Opinion]) -> float | None:
    """Verdicts won by the longer answer minus those won by the shorter, as a share of both."""
    sign = {"chosen": 1, "rejected": -1, "tie": 0}
    signs = []
    for row in rows:
        sign_of_longer = sign[row.verdict.winner] * row.longer
        if sign_of_longer:  # neither a tie nor answers of equal length
            signs.append(sign_of_longer)
    return _mean(signs)


def _mean(values: Sequence[int]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None
