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
TOLD = ("max_length_ratio", "min_length_for_ratio", "overlap_words", "languages")
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
    kept = facts.loc[facts["reason"].isna()]
    content = {
        "failures": list(failures),
        "params": {name: getattr(params, name) for name in TOLD},
        "unit": "tokens" if params.tokenizer else "words",
        "total": len(facts),
        "kept": {split: int((kept["split"] == split).sum()) for split in ("train", "val")},
        "dropped": len(facts) - len(kept),
        "reasons": _reasons(facts),
        "sources": _fates(facts),
        "lengths": list(_lengths(facts)),
        "ratios": {
            name: _counted(_ratios(found)) for name, found in (("before", facts), ("after", kept))
        },
        "languages": Counter(kept["language"].dropna()).most_common(8),
        "untold": int(kept["language"].isna().sum()),
        "benchmarks": [benchmark._asdict() for benchmark in benchmarks],
        "tables": {title: [check._asdict() for check in found] for title, found in checks.items()},
    }
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _reasons(facts: pd.DataFrame) -> list[dict[str, Any]]:
    """The reasons that occurred, most frequent first, with a few pairs to look at."""
    groups: Any = facts.groupby("reason", sort=False)
    lines = [
        {
            "name": name,
            "pairs": len(dropped),
            "advice": ADVICE[name],
            "examples": list(_examples(dropped)),
        }
        for name, dropped in groups
    ]
    return sorted(lines, key=lambda line: -line["pairs"])


def _examples(dropped: pd.DataFrame) -> Iterator[str]:
    for id, detail in dropped[["id", "detail"]].head(EXAMPLES).itertuples(index=False, name=None):
        yield f"{id}: {detail}" if detail else id


def _fates(facts: pd.DataFrame) -> dict[str, Counter[str]]:
    """What became of the pairs of each source: `kept`, or the reason."""
    return {
        str(source): Counter(found["reason"].fillna("kept"))
        for source, found in facts.groupby("source")
    }


def _lengths(facts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each source before and after the length constraint: median ratios of chosen over rejected.

    `after` is None where nothing is kept.
    """
    for source, found in facts.groupby("source"):
        before, after = _ratios(found), _ratios(found.loc[found["reason"].isna()])
        if len(before):
            too_long = int(sum(found["reason"] == "chosen too long"))
            medians = {
                "before": float(before.median()),
                "after": float(after.median()) if len(after) else None,
            }
            yield {"source": str(source), "pairs": len(found), "too_long": too_long, **medians}


def _counted(ratios: pd.Series) -> list[tuple[float, int]]:
    """How many pairs have which ratio, to a hundredth: few lines, however many pairs there are."""
    counts = Counter(ratios.clip(upper=MAX_RATIO).round(2).tolist())
    return sorted(counts.items())


def _ratios(facts: pd.DataFrame) -> pd.Series:
    both = facts.loc[(facts["chosen_length"] > 0) & (facts["rejected_length"] > 0)]
    return both["chosen_length"] / both["rejected_length"]
