"""What a stage reports: numbers by name, and curves through `log(metrics, step)`."""

from collections.abc import Callable

Metrics = dict[str, float | int]
Log = Callable[[dict[str, float], int], None]


def ignore(metrics: dict[str, float], step: int) -> None:
    """A `Log` for callers who want no curves."""
