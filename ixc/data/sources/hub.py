"""Data sets of the Hugging Face hub, streamed: nothing is downloaded whole. Needs the extra `hub`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ixc.data.sources import BadSource

WAITS = (1.0, 10.0, 60.0)
"""Seconds before another try at the row where the stream broke; a row that was read starts them anew."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where a data set is on the hub."""

    name: str
    """`owner/name`, or a local folder that `datasets` can read."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def stream(hub: Hub) -> Iterator[dict[str, Any]]:
    """The records of a split in their order; images stay `{"bytes", "path"}`, as they are stored.

    Raises:
        BadSource: `datasets` is not installed, the hub cannot be reached, it has no such data set, or it breaks off
            again and again.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise BadSource(
            f"hub {hub.name}: needs `datasets`: pip install 'ixc[hub]'; or set `path`"
        ) from error
    options = {"split": hub.split, "revision": hub.revision, "streaming": True}
    try:
        data = load_dataset(hub.name, hub.config, **options)
    # Offline, not found, gated, a bad config: each library raises its own.
    except Exception as error:
        advice = "check name, config, split and network; or download it and set `path`"
        raise BadSource(f"hub {hub.name}: {type(error).__name__}: {error}; {advice}") from error

    count = tries = 0
    while True:
        # After a break, go on behind the rows that were read.
        rest = data.skip(count) if count else data
        try:
            for record in rest.decode(False):
                yield record
                count += 1
                tries = 0
            return
        # A lost connection, a damaged file: each library raises its own.
        except Exception as error:
            if tries == len(WAITS):
                raise BadSource(f"hub {hub.name}: {_broke_off(hub, count, error)}") from error
            time.sleep(WAITS[tries])
            tries += 1


def _broke_off(hub: Hub, count: int, error: Exception) -> str:
    what = f"{type(error).__name__} at row {count + 1:,} of {hub.split}, {len(WAITS) + 1} times: {error}"
    return f"{what}; run `collect` again when the network is back, or download it and set `path`"
