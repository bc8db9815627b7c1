"""One reader per data-set family: native rows in, `Row`s out. `collect` stores their media and sorts them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ixc.samples import Domain, Gold, Turn


@dataclass(frozen=True, kw_only=True)
class File:
    """A picture or film that a row refers to: on disk, or made in memory."""

    kind: Literal["image", "video"]
    path: Path | None = None
    data: bytes | None = None
    suffix: str = ""
    """With the dot; needed with `data`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a source. With `chosen` and `rejected` it is a ready pair, else a prompt to be answered."""

    id: str
    """Unique within the source."""
    domain: Domain
    prompt: tuple[Turn, ...]
    media: tuple[File, ...] = ()
    gold: Gold | None = None
    chosen: str = ""
    rejected: str = ""
    wrong: tuple[str, ...] = ()
    """Answers in full words that the source knows to be wrong: what a hallucination would say."""
    split: Literal["train", "val"] | None = None
    """None: `collect` decides, by `group`."""
    group: str = ""
    """Rows of one group, say of one picture, are held out together; empty: the row stands alone."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that cannot be used, and why: file, row, reason, remedy."""

    where: str
    reason: str


Reader = Callable[[Path, int], Iterator[Row | Refused]]
"""(path, seed) -> rows. Raises `FileNotFoundError` with a remedy if the path does not exist."""
