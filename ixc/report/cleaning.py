"""Blocks about the cleaning of a corpus."""

from collections import Counter, defaultdict

from ixc.report.blocks import Block, Figure, Figures, Table
from ixc.report.record import NONE_PLANTED, Record, kinds, named
from ixc.report.svg import histogram, percent


def planted(record: Record) -> Block | None:
    """Rewards of the corpus's rows, and of corrupted copies of some of them."""
    table = record.table("scored/corpus", ("reward", "planted", "planted_reward"))
    if table is None or not len(table):
        return None
    # A row without a reward could not be scored.
    groups: dict[str, list[float]] = {NONE_PLANTED: []}
    for reward in table["reward"].to_pylist():
        if reward is not None:
            groups[NONE_PLANTED].append(reward)
    planted_kinds = table["planted"].to_pylist()
    planted_rewards = table["planted_reward"].to_pylist()
    for kind, reward in zip(planted_kinds, planted_rewards, strict=True):
        if kind and reward is not None:
            groups.setdefault(kind, []).append(reward)
    svg = histogram(
        {name: groups[name] for name in kinds(groups)},
        label="Rewards of corpus samples and of spoilt copies",
        x_label="reward",
    )
    caption = (
        "The corpus as it came, and copies of some of its samples, spoilt on purpose, which are only measured. Every "
        "group is drawn as shares of itself."
    )
    return Figures([Figure("Rewards by planted defect", svg, caption)]) if svg else None


def cleaned_table(record: Record) -> Block | None:
    """What became of the corpus's rows, by domain."""
    table = record.table("scored/corpus", ("domain", "fate"))
    if table is None or not len(table):
        return None
    domains = table["domain"].to_pylist()
    outcomes = table["fate"].to_pylist()
    by_domain: defaultdict[object, Counter[str]] = defaultdict(Counter)
    for domain, outcome in zip(domains, outcomes, strict=True):
        by_domain[domain][outcome] += 1

    # The columns of the table, in the order in which a reader asks.
    columns = ("kept", "removed", "unscored")
    body = []
    for domain in sorted(by_domain, key=str):
        counts = by_domain[domain]
        body.append([str(domain), *(f"{counts[column]:,}" for column in columns)])
    totals = sum(by_domain.values(), Counter())
    body.append(["all", *(f"{totals[column]:,}" for column in columns)])
    caption = (
        "The corpus as it came: every row is kept as it is, or removed, or could not be scored."
    )
    return Table(("domain", *columns), body, caption)


def cleaning_table(record: Record) -> Block | None:
    """How well the reward tells each kind of planted defect apart, in the copy."""
    metrics = record.metrics("clean")
    table = []
    for kind in kinds(set(named(metrics, "auroc")) - {"all"}):
        count = metrics.get(f"planted/{kind}")
        recall = metrics.get(f"recall/{kind}")
        cells = [
            kind,
            "–" if count is None else f"{count:,.0f}",
            "–" if recall is None else percent(recall),
            percent(metrics[f"auroc/{kind}"]),
        ]
        table.append(cells)
    if "auroc/all" in metrics:
        table.append(["all", "", "", percent(metrics["auroc/all"])])
    caption = "Measured in a copy of the corpus, a share of which was spoilt on purpose; no row of the copy is kept."
    head = ("planted defect", "copies", "would be removed", "AUROC")
    return Table(head, table, caption) if table else None
