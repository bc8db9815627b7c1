"""The page about a validation, from what the stage has written down."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ixc.io.files import replacing
from ixc.report.record import Record
from ixc.report.svg import bars, histogram

UNREAD = 20
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
    path = source.with_suffix(".html")
    with replacing(path) as part:
        part.write_text(as_page(content, record), encoding="utf-8")
    return path


def as_page(content: Mapping[str, Any], record: Record) -> str:
    """The page as HTML.

    Args:
        content: as `ixc.stages.validate.summary.write_summary` writes it.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(
        loader=folder,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fates = {fate for counts in content["sources"].values() for fate in counts}
    return pages.get_template("validation.html.jinja").render(
        content,
        fates=sorted(fates, key=lambda fate: (fate != "kept", fate)),
        sources_plot=_sources_plot(content["sources"]),
        lengths_plot=_lengths_plot(content["ratios"]),
        num_unread=UNREAD,
        origins=record.origins(["validate"]),
    )


def _sources_plot(sources: Mapping[str, Mapping[str, int]]) -> Markup:
    """Colours tell kept from dropped; why is in the table, which has more room than six colours."""
    rows: dict[str, dict[str, float]] = {}
    for source, counts in sources.items():
        kept = float(counts.get("kept", 0))
        rows[source] = {"kept": kept, "dropped": sum(counts.values()) - kept}
    return bars(rows, label="Pairs by source and what became of them")


def _lengths_plot(ratios: Mapping[str, Sequence[Sequence[float | int]]]) -> Markup:
    groups: dict[str, np.ndarray] = {}
    for name, counted in ratios.items():
        values, counts = zip(*counted, strict=True) if counted else ((), ())
        groups[name] = np.repeat(np.array(values, float), np.array(counts, int))
    label = "Length of chosen over rejected"
    return histogram(groups, label=label, x_label="length of chosen / length of rejected")
