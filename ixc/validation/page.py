"""The page about a validation: what came in, what was dropped and why, what the tables fulfil."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ixc.files import replacing
from ixc.params import ValidateParams
from ixc.report.svg import bars, histogram
from ixc.validation.benchmarks import Benchmark
from ixc.validation.expectations import Check
from ixc.validation.reasons import ADVICE

MAX_RATIO = 4.0
"""Length ratios beyond this are drawn at the edge."""
EXAMPLES = 3
"""Pairs named for a reason."""

UNREAD = 20
"""Files named that were not read of a benchmark."""


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
    facts: pd.DataFrame,
    params: ValidateParams,
    checks: Mapping[str, Sequence[Check]],
    benchmarks: Sequence[Benchmark],
    failures: Sequence[str],
) -> None:
    """Write one self-contained file about all pairs that came in; `failures` say why the stage fails.

    Args:
        facts: a column for each field of `ixc.validation.facts.Facts`.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kept = facts.loc[facts["reason"].isna()]
    fates = _fates(facts)
    html = pages.get_template("page.html.jinja").render(
        failures=failures,
        params=params,
        unit="tokens" if params.tokenizer else "words",
        total=len(facts),
        kept={split: (kept["split"] == split).sum() for split in ("train", "val")},
        dropped=len(facts) - len(kept),
        reasons=_reasons(facts),
        fates=sorted({fate for counts in fates.values() for fate in counts}, key=lambda fate: (fate != "kept", fate)),
        sources=fates,
        sources_plot=_sources_plot(fates),
        lengths=list(_lengths(facts)),
        lengths_plot=_lengths_plot(facts, kept),
        languages=Counter(kept["language"].dropna()).most_common(8),
        untold=kept["language"].isna().sum(),
        benchmarks=benchmarks,
        num_unread=UNREAD,
        tables=checks,
    )
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")


def _reasons(facts: pd.DataFrame) -> list[Reason]:
    """The reasons that occurred, most frequent first, with a few pairs to look at."""
    groups: Any = facts.groupby("reason", sort=False)
    lines = [Reason(name, len(dropped), ADVICE[name], list(_examples(dropped))) for name, dropped in groups]
    return sorted(lines, key=lambda line: -line.pairs)


def _examples(dropped: pd.DataFrame) -> Iterator[str]:
    for id, detail in dropped[["id", "detail"]].head(EXAMPLES).itertuples(index=False, name=None):
        yield f"{id}: {detail}" if detail else id


def _fates(facts: pd.DataFrame) -> dict[str, Counter[str]]:
    """What became of the pairs of each source: `kept`, or the reason."""
    return {str(source): Counter(found["reason"].fillna("kept")) for source, found in facts.groupby("source")}


def _sources_plot(sources: Mapping[str, Counter[str]]) -> Markup:
    """Colours tell kept from dropped; why is in the table, which has more room than six colours."""
    rows = {
        source: {"kept": float(counts["kept"]), "dropped": float(counts.total() - counts["kept"])}
        for source, counts in sources.items()
    }
    return bars(rows, label="Pairs by source and what became of them")


def _lengths(facts: pd.DataFrame) -> Iterator[Lengths]:
    """The length constraint by source."""
    for source, found in facts.groupby("source"):
        before, after = _ratios(found), _ratios(found.loc[found["reason"].isna()])
        if len(before):
            too_long = sum(found["reason"] == "chosen too long")
            median = after.median() if len(after) else None
            yield Lengths(str(source), len(found), too_long, before.median(), median)


def _lengths_plot(facts: pd.DataFrame, kept: pd.DataFrame) -> Markup:
    groups = {name: _ratios(found).clip(upper=MAX_RATIO) for name, found in (("before", facts), ("after", kept))}
    return histogram(
        {name: ratios.to_numpy() for name, ratios in groups.items()},
        label="Length of chosen over rejected",
        x_label="length of chosen / length of rejected",
    )


def _ratios(facts: pd.DataFrame) -> pd.Series:
    both = facts.loc[(facts["chosen_length"] > 0) & (facts["rejected_length"] > 0)]
    return both["chosen_length"] / both["rejected_length"]
