"""Where the real data sets are: IXC_REAL_DATA, or `shared/data` beside the repository; a clone alone has neither."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REAL = Path(os.environ.get("IXC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def needs_real(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test reads real data sets, and is skipped where there are none."""
    absent = pytest.mark.skipif(
        not REAL.is_dir(), reason=f"{REAL}: no real data there; set IXC_REAL_DATA"
    )
    return pytest.mark.real(absent(test))
