"""What the report says of the cleaning of a corpus."""

from collections import Counter

from ixc.report.blocks import Block, Figure, Figures, Table
from ixc.report.record import NONE_PLANTED, Record, kinds, named
from ixc.report.svg import histogram, percent


def planted(record: Record) -> Block | None:
    """Rewards of the corpus's rows, and of spoilt copies of some of them."""
    table = record.table("scored/corpus", ("reward", "planted", "planted_reward"))
    if table is None or not len(table):
        return None
    groups: dict[str, list[float]] = {
        NONE_PLANTED: [row for row in table["reward"].to_pylist() if row is not None]
    }
    for kind, reward in zip(
        table["planted"].to_pylist(), table["planted_reward"].to_pylist(), strict=True
    ):
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
    counted = Counter(zip(table["domain"].to_pylist(), table["fate"].to_pylist(), strict=True))
    fates = ("kept", "removed", "unscored")
    names = sorted({domain for domain, _ in counted}, key=str)
    body = [[str(name), *(f"{counted[name, fate]:,}" for fate in fates)] for name in names]
    total = [f"{sum(counted[name, fate] for name in names):,}" for fate in fates]
    caption = (
        "The corpus as it came: every row is kept as it is, or removed, or could not be scored."
    )
    return Table(("domain", *fates), [*body, ["all", *total]], caption)


def cleaning_table(record: Record) -> Block | None:
    """How well the reward tells each kind of planted defect apart, in the copy."""
    metrics = record.metrics("clean")
    table = []
    for kind in kinds(set(named(metrics, "auroc")) - {"all"}):
        count, recall = metrics.get(f"planted/{kind}"), metrics.get(f"recall/{kind}")
        table.append(
            [
                kind,
                "–" if count is None else f"{count:,.0f}",
                "–" if recall is None else percent(recall),
                percent(metrics[f"auroc/{kind}"]),
            ]
        )
    if "auroc/all" in metrics:
        table.append(["all", "", "", percent(metrics["auroc/all"])])
    caption = "Measured in a copy of the corpus, a share of which was spoilt on purpose; no row of the copy is kept."
    return (
        Table(("planted defect", "copies", "would be removed", "AUROC"), table, caption)
        if table
        else None
    )
