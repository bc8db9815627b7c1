"""`python -m ixc.report [root]` writes `reports/index.html`."""

import sys
from pathlib import Path

from ixc.report import write_report

print(write_report(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
