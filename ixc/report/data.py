"""What came in: blocks that count rows, prompts and pairs."""

from ixc.report.blocks import Block, Figure, Figures, Table
from ixc.report.record import MODALITIES, Record, named
from ixc.report.svg import bars

FILES = {"Prompts": "prompts", "Training pairs": "pairs/train", "Held-out pairs": "pairs/val"}
OUTCOMES = {"kept": "kept", "quarantined": "quarantined", "left_out": "left out by the mixture"}


def sources_plot(record: Record) -> Block | None:
    """How many rows of each source were used."""
    metrics = record.metrics("collect")
    sources = {}
    for name in named(metrics, "rows"):
        sources[name] = {title: _rows(metrics, key, name) for key, title in OUTCOMES.items()}
    if not sources:
        return None
    svg = bars(sources, label="Rows by source and what became of them")
    caption = "Rows of each source. Why rows are in quarantine is told below."
    return Figures([Figure("What came in", svg, caption, wide=True)])


def sources_table(record: Record) -> Block | None:
    """The same in numbers, and what was not read at all."""
    metrics = record.metrics("collect")
    table = []
    for name in named(metrics, "rows"):
        counts = [_rows(metrics, key, name) for key in ("rows", *OUTCOMES)]
        table.append([name, *(f"{count:,.0f}" for count in counts)])
    # Of these not even the number of rows is known.
    for name in named(metrics, "unread"):
        table.append([f"{name} (left out by its licence, not read)", *"––––"])
    head = ("source", "rows", *OUTCOMES.values())
    return Table(head, table, "What came in, and what was left out") if table else None


def data_counts(record: Record) -> Block | None:
    """How many samples there are of what."""
    figures = []
    for title, name in FILES.items():
        counts = _counts(record, name)
        if counts:
            total = sum(sum(row.values()) for row in counts.values())
            svg = bars(counts, label=f"{title} by domain and modality")
            caption = f"{total:,} by domain and modality."
            figures.append(Figure(title, svg, caption))
    return Figures(figures) if figures else None


def data_table(record: Record) -> Block | None:
    """The same in numbers."""
    files = {title: _counts(record, name) for title, name in FILES.items()}
    files = {title: counts for title, counts in files.items() if counts}
    domains: set[str] = set()
    for counts in files.values():
        domains.update(counts)

    # A row for each domain and modality of which there is anything.
    table = []
    for domain in sorted(domains):
        for modality in sorted(MODALITIES):
            numbers = [counts.get(domain, {}).get(modality, 0) for counts in files.values()]
            if any(numbers):
                table.append([domain, modality, *(f"{number:,}" for number in numbers)])
    head = ("domain", "modality", *files)
    return Table(head, table, "The same in numbers", num_texts=2) if table else None


def _counts(record: Record, name: str) -> dict[str, dict[str, int]]:
    """Samples by domain, then by modality."""
    table = record.table(name, ("domain", "modality"))
    if table is None:
        return {}
    # Zeros included, so that every domain has the same series in the same colours.
    groups = table.group_by(["domain", "modality"])
    rows = groups.aggregate([([], "count_all")]).to_pylist()
    counts: dict[str, dict[str, int]] = {}
    for domain in sorted({row["domain"] for row in rows}):
        counts[domain] = dict.fromkeys(MODALITIES, 0)
    for row in rows:
        counts[row["domain"]][row["modality"]] = row["count_all"]
    return counts


def _rows(
    metrics: dict[str, float],
    outcome: str,
    source: str,
) -> float:
    """Rows of a source with some outcome."""
    return metrics.get(f"{outcome}/{source}", 0.0)
