"""The page about a validation: what came in, what was dropped and why, what the kept pairs fulfil."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ixc.files import replacing
from ixc.report.svg import bars, histogram
from ixc.validation.expectations import Check
from ixc.validation.facts import Facts

MAX_RATIO = 4.0
"""Length ratios beyond this are drawn at the edge."""


class Reason(NamedTuple):
    """A line of the table of reasons."""

    name: str
    pairs: int
    advice: str
    examples: str


def write_page(
    path: Path,
    facts: Sequence[Facts],
    advice: Mapping[str, str],
    checks: Sequence[Check],
    failures: Sequence[str],
) -> None:
    """Write one self-contained file about all pairs that came in; `failures` say why the stage fails."""
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kept = [fact for fact in facts if fact.reason is None]
    html = pages.get_template("page.html.jinja").render(
        failures=failures,
        total=len(facts),
        kept={split: sum(fact.split == split for fact in kept) for split in ("train", "val")},
        dropped=len(facts) - len(kept),
        reasons=_reasons(facts, advice),
        sources=_sources(facts),
        sources_plot=_sources_plot(facts),
        lengths_plot=_lengths_plot(facts, kept),
        checks=checks,
    )
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")


def _reasons(facts: Iterable[Facts], advice: Mapping[str, str]) -> list[Reason]:
    """The reasons that occurred, most frequent first, with a few ids to look at."""
    ids: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.reason:
            ids[fact.reason].append(fact.id)
    lines = [Reason(name, len(found), advice[name], ", ".join(found[:3])) for name, found in ids.items()]
    return sorted(lines, key=lambda line: -line.pairs)


def _sources(facts: Iterable[Facts]) -> dict[str, Counter[str]]:
    """What became of the pairs of each source: `kept`, or the reason."""
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        fates[fact.source][fact.reason or "kept"] += 1
    return dict(sorted(fates.items()))


def _sources_plot(facts: Iterable[Facts]) -> Markup:
    """Every source's bar names the fates in the same order, `kept` first, so that colours agree."""
    sources = _sources(facts)
    fates = sorted({fate for counts in sources.values() for fate in counts}, key=lambda f: (f != "kept", f))
    rows = {source: {fate: float(counts[fate]) for fate in fates} for source, counts in sources.items()}
    return bars(rows, label="Pairs by source and what became of them")


def _lengths_plot(facts: Iterable[Facts], kept: Iterable[Facts]) -> Markup:
    groups = {"before": _ratios(facts), "after": _ratios(kept)}
    return histogram(groups, label="Length of chosen over rejected", x_label="words chosen / words rejected")


def _ratios(facts: Iterable[Facts]) -> list[float]:
    both = (fact for fact in facts if fact.chosen_words and fact.rejected_words)
    return [min(fact.chosen_words / fact.rejected_words, MAX_RATIO) for fact in both]
