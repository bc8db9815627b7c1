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
    no_benchmarks = Benchmarks((), params.overlap_words, 0)
    facts = Observer(params, no_benchmarks).row_group(path).facts
    rules = suite(_suite_of(facts), params)
    return run_checks(table_of(facts, media), rules)


def _suite_of(facts: pd.DataFrame) -> Suite:
    """The suite that fits a table."""
    # By what its rows have: a file's name may be anything.
    if any(facts["num_candidates"]):
        return "candidates"
    has_both_answers = facts["chosen_length"] * facts["rejected_length"]
    return "pairs" if any(has_both_answers) else "prompts"


def main(table: str, media: str = "data/media") -> int:
    """Print the checks; 1 where one that matters is not met or could not be computed."""
    try:
        checks = check_table(Path(table), Path(media))
    except (BadRecord, OSError) as error:
        print(error, file=sys.stderr)
        return 1

    exit_code = 0
    for check in checks:
        status = check.status
        detail = f" ({check.detail})" if check.detail else ""
        if status == "failed" and not check.critical:
            print(f"warning  {check.says}{detail}")
            continue
        print(f"{status:8} {check.says}{detail}")
        if status != "passed":
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {__doc__}")
    sys.exit(main(*sys.argv[1:]))
