"""One reader per data-set family: native rows in, `Row`s out. `collect` stores their media and sorts them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
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
"""(path, seed) -> rows, in the order of the files. Raises `BadSource` if the path holds no such data."""


class BadSource(ValueError):
    """A source that cannot be read at all: what was looked for, and what to do."""


def _reader(name: str) -> Reader:
    """A reader whose module is imported when it is first used."""

    def read(path: Path, seed: int) -> Iterator[Row | Refused]:
        return import_module(f"ixc.sources.{name}").read(path, seed)

    return read


_NAMES = (
    "embedded",
    "gsm8k",
    "hh_rlhf",
    "ifeval",
    "jsonl",
    "math_vision",
    "nlvr",
    "photos",
    "super_clevr",
    "videos",
)
READERS: dict[str, Reader] = {name: _reader(name) for name in _NAMES}
"""By the name that `collect.sources[].reader` gives."""
