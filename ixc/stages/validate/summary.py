"""What a validation came to, as plain data: what came in, what was dropped and why, what the tables fulfil.

`ixc.report.validation` makes a page of it, so that how the page looks is no part of the stage.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ixc.data.reasons import ADVICE
from ixc.io.files import replacing
from ixc.params import ValidateParams
from ixc.stages.validate.contamination import Benchmark
from ixc.stages.validate.expectations import Check

MAX_RATIO = 4.0
"""Length ratios beyond this are counted with it."""
EXAMPLES = 3
"""Pairs named for a reason."""
EXPLAINED = ("max_length_ratio", "min_length_for_ratio", "overlap_words", "languages")
"""Parameters that the page explains."""


def write_summary(
    path: Path,
    facts: pd.DataFrame,
    params: ValidateParams,
    checks: Mapping[str, Sequence[Check]],
    benchmarks: Sequence[Benchmark],
    failures: Sequence[str],
) -> None:
    """Write a JSON object about all pairs that came in; `failures` say why the stage fails.

    Args:
        facts: a column for each field of `ixc.stages.validate.facts.Facts`.
    """
    retained = facts.loc[facts["reason"].isna()]
    num_by_split = Counter(retained["split"])
    tables = {}
    for title, results in checks.items():
        tables[title] = [check._asdict() for check in results]
    # Everything that the page needs, so that it can be made, and made again, without the tables.
    content = {
        "failures": list(failures),
        "params": {name: getattr(params, name) for name in EXPLAINED},
        "unit": "tokens" if params.tokenizer else "words",
        "total": len(facts),
        "kept": {split: num_by_split[split] for split in ("train", "val")},
        "dropped": len(facts) - len(retained),
        "reasons": _reasons(facts),
        "sources": _outcomes(facts),
        "lengths": list(_lengths(facts)),
        "ratios": {
            "before": _histogram(_ratios(facts)),
            "after": _histogram(_ratios(retained)),
        },
        "languages": Counter(retained["language"].dropna()).most_common(8),
        "untold": int(retained["language"].isna().sum()),
        "benchmarks": [benchmark._asdict() for benchmark in benchmarks],
        "tables": tables,
    }
    # Ids and details may be in any language.
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _reasons(facts: pd.DataFrame) -> list[dict[str, Any]]:
    """The reasons that occurred, most frequent first, with a few pairs to look at."""
    groups: Any = facts.groupby("reason", sort=False)
    lines = []
    for name, dropped in groups:
        line = {
            "name": name,
            "pairs": len(dropped),
            "advice": ADVICE[name],
            "examples": list(_examples(dropped)),
        }
        lines.append(line)
    # A stable sort: equally frequent ones stay in the order in which they occurred.
    return sorted(lines, key=lambda line: -line["pairs"])


def _examples(dropped: pd.DataFrame) -> Iterator[str]:
    """The ids of a few dropped pairs, with the detail where there is one."""
    first = dropped[["id", "detail"]].head(EXAMPLES)
    for id, detail in first.itertuples(index=False, name=None):
        yield f"{id}: {detail}" if detail else id


def _outcomes(facts: pd.DataFrame) -> dict[str, Counter[str]]:
    """What became of the pairs of each source: `kept`, or the reason."""
    outcomes = {}
    for source, rows in facts.groupby("source"):
        outcomes[str(source)] = Counter(rows["reason"].fillna("kept"))
    return outcomes


def _lengths(facts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each source before and after the length constraint: median ratios of chosen over rejected.

    `after` is None where nothing is left.
    """
    for source, rows in facts.groupby("source"):
        before = _ratios(rows)
        after = _ratios(rows.loc[rows["reason"].isna()])
        if not len(before):  # prompts that were answered with nothing have no ratio
            continue
        yield {
            "source": str(source),
            "pairs": len(rows),
            "too_long": int(sum(rows["reason"] == "chosen too long")),
            "before": float(before.median()),
            "after": float(after.median()) if len(after) else None,
        }


def _histogram(ratios: pd.Series) -> list[tuple[float, int]]:
    """How many pairs have which ratio, to a hundredth: few lines, however many pairs there are."""
    # The page draws its own bins.
    counts = Counter(ratios.clip(upper=MAX_RATIO).round(2).tolist())
    return sorted(counts.items())


def _ratios(facts: pd.DataFrame) -> pd.Series:
    """Lengths of chosen over rejected, of the pairs that have both."""
    # An empty answer is dropped anyway, and has no ratio.
    has_both = (facts["chosen_length"] > 0) & (facts["rejected_length"] > 0)
    both = facts.loc[has_both]
    return both["chosen_length"] / both["rejected_length"]
