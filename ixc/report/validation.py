"""The page about a validation, from what the stage has written down."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ixc.io.files import replacing
from ixc.report.pages import render
from ixc.report.record import Record
from ixc.report.svg import bars, histogram

MAX_UNREAD = 20
"""Files named that were not read of a benchmark."""


def write_validation(record: Record) -> Path | None:
    """Write `reports/validation.html`, one self-contained file, or nothing before the stage has run.

    Raises:
        ValueError, LookupError, TypeError: `reports/validation.json` is not what the stage writes.
    """
    source = record.root / "reports" / "validation.json"
    if not source.exists():
        return None
    content = json.loads(source.read_text(encoding="utf-8"))
    html = as_page(content, record)
    path = source.with_suffix(".html")
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def as_page(content: Mapping[str, Any], record: Record) -> str:
    """The page as HTML.

    Args:
        content: as `ixc.stages.validate.summary.write_summary` writes it.
    """
    outcomes: set[str] = set()
    for counts in content["sources"].values():
        outcomes.update(counts)
    page = {
        **content,
        # `kept` before the reasons, which are in alphabetical order.
        "outcomes": sorted(outcomes, key=lambda outcome: (outcome != "kept", outcome)),
        "sources_plot": _sources_plot(content["sources"]),
        "lengths_plot": _lengths_plot(content["ratios"]),
        "num_unread": MAX_UNREAD,
        "origins": record.origins(["validate"]),
    }
    return render("validation.html.jinja", page)


def _sources_plot(sources: Mapping[str, Mapping[str, int]]) -> Markup:
    """Colours tell kept from dropped; why is in the table, which has more room than six colours."""
    rows: dict[str, dict[str, float]] = {}
    for source, counts in sources.items():
        num_retained = float(counts.get("kept", 0))
        num_dropped = sum(counts.values()) - num_retained
        rows[source] = {"kept": num_retained, "dropped": num_dropped}
    return bars(rows, label="Pairs by source and what became of them")


def _lengths_plot(ratios: Mapping[str, Sequence[Sequence[float | int]]]) -> Markup:
    """Ratios of lengths before and after the rules."""
    groups: dict[str, np.ndarray] = {}
    for name, bins in ratios.items():
        # Each ratio as often as there are pairs that have it.
        values = np.array([value for value, _ in bins], float)
        counts = np.array([count for _, count in bins], int)
        groups[name] = np.repeat(values, counts)
    label = "Length of chosen over rejected"
    return histogram(groups, label=label, x_label="length of chosen / length of rejected")
