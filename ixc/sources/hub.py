"""Data sets of the Hugging Face hub, streamed: nothing is downloaded whole. Needs the extra `hub`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ixc.sources import BadSource


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where a data set is on the hub."""

    name: str
    """`owner/name`, or a local folder that `datasets` can read."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def stream(hub: Hub) -> Iterator[dict[str, Any]]:
    """The records of a split in their order; pictures stay `{"bytes", "path"}`, as they are stored.

    Raises:
        BadSource: `datasets` is not installed, the hub cannot be reached, or it has no such data set.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise BadSource(f"hub {hub.name}: needs `datasets`: pip install 'ixc[hub]'; or set `path`") from error
    try:
        data = load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
    except Exception as error:  # offline, not found, gated, a bad config: each library raises its own
        advice = "check name, config, split and network; or download it and set `path`"
        raise BadSource(f"hub {hub.name}: {type(error).__name__}: {error}; {advice}") from error
    yield from data.decode(False)
