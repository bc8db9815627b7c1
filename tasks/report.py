"""The page and the summary, from whatever the stages have left behind: `python -m tasks.report`."""

import json
import warnings
from pathlib import Path
from typing import Any

from ixc.io.files import replacing


def refresh(root: Path = Path(), wall_s: float | None = None) -> Path | None:
    """Write `metrics/summary.json` and `reports/index.html`; where that fails, warn: a report fails no run.

    Args:
        root: the workspace.
        wall_s: seconds of a flow in which every stage really ran; none: keep the value of the last such flow.
    """
    try:
        from ixc.report import summary, write_report

        content = summary(root)
        if wall_s is not None:
            content["wall_s"] = round(wall_s, 1)
        write_json(content, root / "metrics" / "summary.json")
        return write_report(root)
    except Exception as error:
        warnings.warn(f"report not written: {type(error).__name__}: {error}", stacklevel=2)
        return None


def write_json(content: Any, path: Path) -> None:
    """Sorted and indented, whole or not at all."""
    text = json.dumps(content, indent=2, sort_keys=True)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def numbers(root: Path = Path()) -> dict[str, float]:
    """`metrics/summary.json` with dotted keys; empty before the first report."""
    path = root / "metrics" / "summary.json"
    if not path.exists():
        return {}
    return _flat(json.loads(path.read_text(encoding="utf-8")))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


if __name__ == "__main__":
    print(refresh() or "")
