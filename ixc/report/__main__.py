"""`python -m ixc.report [--max-pairs N] [root]` writes `reports/index.html`, `pairs.html` and `validation.html`."""

import argparse
from pathlib import Path

from ixc.report import write_report

command = argparse.ArgumentParser(
    "python -m ixc.report", description="Write reports/index.html and its pages."
)
command.add_argument(
    "root",
    nargs="?",
    type=Path,
    default=Path(),
    help="where the stages have written (default: here)",
)
command.add_argument(
    "--max-pairs", type=int, default=200, help="pairs to browse at most; 0: none (default: 200)"
)
options = command.parse_args()
print(write_report(options.root, options.max_pairs))
