"""What came in: blocks that count rows, prompts and pairs."""

from ixc.report.blocks import Block, Figure, Figures, Table
from ixc.report.record import MODALITIES, Record, named
from ixc.report.svg import bars

FILES = {"Prompts": "prompts", "Training pairs": "pairs/train", "Held-out pairs": "pairs/val"}
FATES = {"kept": "kept", "quarantined": "quarantined", "left_out": "left out by the mixture"}


def sources_plot(record: Record) -> Block | None:
    """How many rows of each source were kept."""
    metrics = record.metrics("collect")
    fates = {
        name: {FATES[key]: _fate(metrics, key, name) for key in FATES}
        for name in named(metrics, "rows")
    }
    if not fates:
        return None
    svg = bars(fates, label="Rows by source and what became of them")
    caption = "Rows of each source. Why rows are in quarantine is told below."
    return Figures([Figure("What came in", svg, caption, wide=True)])


def sources_table(record: Record) -> Block | None:
    """The same in numbers, and what was not read at all."""
    metrics = record.metrics("collect")
    table = [
        [name, *(f"{_fate(metrics, key, name):,.0f}" for key in ("rows", *FATES))]
        for name in named(metrics, "rows")
    ]
    table += [
        [f"{name} (left out by its licence, not read)", *"––––"]
        for name in named(metrics, "unread")
    ]
    return (
        Table(("source", "rows", *FATES.values()), table, "What came in, and what was left out")
        if table
        else None
    )


def data_counts(record: Record) -> Block | None:
    """How many samples there are of what."""
    figures = []
    for title, name in FILES.items():
        counts = _counts(record, name)
        if counts:
            caption = f"{sum(map(sum, (row.values() for row in counts.values()))):,} by domain and modality."
            figures.append(
                Figure(title, bars(counts, label=f"{title} by domain and modality"), caption)
            )
    return Figures(figures) if figures else None


def data_table(record: Record) -> Block | None:
    """The same in numbers."""
    files = {title: _counts(record, name) for title, name in FILES.items()}
    files = {title: counts for title, counts in files.items() if counts}
    cells = sorted(
        {(domain, kind) for counts in files.values() for domain in counts for kind in MODALITIES}
    )
    numbers = {
        cell: [counts.get(cell[0], {}).get(cell[1], 0) for counts in files.values()]
        for cell in cells
    }
    table = [
        [*cell, *(f"{count:,}" for count in counts)]
        for cell, counts in numbers.items()
        if any(counts)
    ]
    return (
        Table(("domain", "modality", *files), table, "The same in numbers", num_texts=2)
        if table
        else None
    )


def _counts(record: Record, name: str) -> dict[str, dict[str, int]]:
    """Samples by domain, then by modality."""
    table = record.table(name, ("domain", "modality"))
    if table is None:
        return {}
    counted = table.group_by(["domain", "modality"]).aggregate([([], "count_all")]).to_pylist()
    counts = {(row["domain"], row["modality"]): row["count_all"] for row in counted}
    return {
        domain: {modality: counts.get((domain, modality), 0) for modality in MODALITIES}
        for domain in sorted({domain for domain, _ in counts})
    }


def _fate(metrics: dict[str, float], fate: str, source: str) -> float:
    return metrics.get(f"{fate}/{source}", 0.0)
