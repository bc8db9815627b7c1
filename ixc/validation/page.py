"""The page about a validation: what came in, what was dropped and why, what the tables fulfil."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ixc.files import replacing
from ixc.params import ValidateParams
from ixc.report.svg import bars, histogram
from ixc.validation.benchmarks import Benchmark
from ixc.validation.expectations import Check
from ixc.validation.facts import Facts
from ixc.validation.reasons import ADVICE

MAX_RATIO = 4.0
"""Length ratios beyond this are drawn at the edge."""
EXAMPLES = 3
"""Pairs named for a reason."""


class Reason(NamedTuple):
    """A line of the table of reasons."""

    name: str
    pairs: int
    advice: str
    examples: list[str]


class Lengths(NamedTuple):
    """A source before and after the length constraint."""

    source: str
    pairs: int
    too_long: int
    before: float
    """Median ratio of chosen over rejected."""
    after: float | None
    """The same of what is kept; None where nothing is."""


def write_page(
    path: Path,
    facts: Sequence[Facts],
    params: ValidateParams,
    checks: Mapping[str, Sequence[Check]],
    benchmarks: Sequence[Benchmark],
    failures: Sequence[str],
) -> None:
    """Write one self-contained file about all pairs that came in; `failures` say why the stage fails."""
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kept = [fact for fact in facts if fact.objection is None]
    fates = _fates(facts)
    html = pages.get_template("page.html.jinja").render(
        failures=failures,
        params=params,
        unit="tokens" if params.tokenizer else "words",
        total=len(facts),
        kept={split: sum(fact.split == split for fact in kept) for split in ("train", "val")},
        dropped=len(facts) - len(kept),
        reasons=_reasons(facts),
        fates=sorted({fate for counts in fates.values() for fate in counts}, key=lambda fate: (fate != "kept", fate)),
        sources=fates,
        sources_plot=_sources_plot(fates),
        lengths=list(_lengths(facts)),
        lengths_plot=_lengths_plot(facts, kept),
        languages=Counter(fact.language for fact in kept if fact.language).most_common(8),
        benchmarks=benchmarks,
        tables=checks,
    )
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")


def _reasons(facts: Iterable[Facts]) -> list[Reason]:
    """The reasons that occurred, most frequent first, with a few pairs to look at."""
    found = defaultdict(list)
    for fact in facts:
        if fact.objection:
            found[fact.objection.reason].append(fact)
    lines = [
        Reason(name, len(dropped), ADVICE[name], [_example(fact) for fact in dropped[:EXAMPLES]])
        for name, dropped in found.items()
    ]
    return sorted(lines, key=lambda line: -line.pairs)


def _example(fact: Facts) -> str:
    return f"{fact.id}: {fact.objection.detail}" if fact.objection and fact.objection.detail else fact.id


def _fates(facts: Iterable[Facts]) -> dict[str, Counter[str]]:
    """What became of the pairs of each source: `kept`, or the reason."""
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        fates[fact.source][fact.objection.reason if fact.objection else "kept"] += 1
    return dict(sorted(fates.items()))


def _sources_plot(sources: Mapping[str, Counter[str]]) -> Markup:
    """Colours tell kept from dropped; why is in the table, which has more room than six colours."""
    rows = {
        source: {"kept": float(counts["kept"]), "dropped": float(counts.total() - counts["kept"])}
        for source, counts in sources.items()
    }
    return bars(rows, label="Pairs by source and what became of them")


def _lengths(facts: Iterable[Facts]) -> Iterable[Lengths]:
    """The length constraint by source."""
    sources: dict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        sources[fact.source].append(fact)
    for source, found in sorted(sources.items()):
        if before := _ratios(found):
            after = _ratios(fact for fact in found if fact.objection is None)
            too_long = sum(fact.objection is not None and fact.objection.reason == "chosen too long" for fact in found)
            yield Lengths(source, len(found), too_long, median(before), median(after) if after else None)


def _lengths_plot(facts: Iterable[Facts], kept: Iterable[Facts]) -> Markup:
    groups = {
        name: [min(ratio, MAX_RATIO) for ratio in _ratios(found)]
        for name, found in (("before", facts), ("after", kept))
    }
    return histogram(groups, label="Length of chosen over rejected", x_label="length of chosen / length of rejected")


def _ratios(facts: Iterable[Facts]) -> list[float]:
    both = (fact for fact in facts if fact.chosen_length and fact.rejected_length)
    return [fact.chosen_length / fact.rejected_length for fact in both]
