"""`python -m ixc.stages.validate TABLE [MEDIA]` holds any table of samples against its suite."""

import sys
from pathlib import Path

import pandas as pd

from ixc.data.samples import BadRecord
from ixc.params import ValidateParams
from ixc.stages.validate.contamination import Benchmarks
from ixc.stages.validate.expectations import Check, Suite, run_checks, suite
from ixc.stages.validate.facts import Observer, table_of


def check_table(path: Path, media: Path) -> list[Check]:
    """What a table of prompts, candidates or pairs fulfils.

    Raises:
        BadRecord: a row or a column is not what the schema says.
    """
    params = ValidateParams()
    facts = Observer(params, Benchmarks((), params.overlap_words, 0)).part(path).facts
    return run_checks(table_of(facts, media), suite(_suite_of(facts), params))


def _suite_of(facts: pd.DataFrame) -> Suite:
    if any(facts["num_candidates"]):
        return "candidates"
    return "pairs" if any(facts["chosen_length"] * facts["rejected_length"]) else "prompts"


def main(table: str, media: str = "data/media") -> int:
    """Print the checks; 1 where one that matters is not met or could not be computed."""
    try:
        found = check_table(Path(table), Path(media))
    except (BadRecord, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for check in found:
        status = "warning" if check.status == "failed" and not check.critical else check.status
        print(f"{status:8} {check.says}{f' ({check.detail})' if check.detail else ''}")
    return int(
        any(
            check.status == "errored" or (check.status == "failed" and check.critical)
            for check in found
        )
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {__doc__}")
    sys.exit(main(*sys.argv[1:]))
