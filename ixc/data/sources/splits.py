"""Which rows are held out: what the authors of a set keep for tests, and whatever shares a picture or a prompt with it.

Rows that share a picture, a film, a group of their source or, where they have no media, a prompt are bound together,
across sources and through other rows, and go into one split.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Literal

from ixc.data.samples import Sample


def held_out(name: str) -> Literal["val"] | None:
    """Never train on what its authors keep for validation and tests; `collect` splits the rest.

    Args:
        name: a split's name, or a file that has it in its own name or, failing that, its folder's.

    >>> [held_out(name) for name in ("tqa_train_val_test/train/a.json", "aokvqa_v1p0_val.json", "data.json")]
    [None, 'val', None]
    """
    for part in reversed(PurePath(name).parts):
        words = set(re.findall("[a-z]+", part.lower()))
        if words & {"train", "trainval", "minitrain"}:
            return None
        if words & {
            "val",
            "valid",
            "validation",
            "dev",
            "test",
            "testmini",
            "minival",
            "minitest",
            "eval",
        }:
            return "val"
    return None


def split(group: str, val_fraction: float, seed: int) -> str:
    """`val` for a fixed share of the groups, whatever else there is.

    >>> 150 < sum(split(f"group {i}", 0.2, seed=0) == "val" for i in range(1000)) < 250
    True
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return "val" if int.from_bytes(digest[:4]) / 2**32 < val_fraction else "train"


def bonds(sample: Sample, group: str) -> list[int]:
    """What binds a sample to others: 64 bits for its group, for each picture or film, or for its prompt of words alone.

    Args:
        group: of the sample's source; empty for none.
    """
    keys = [f"media/{file.sha256}" for file in sample.media]
    if not keys:
        keys.append(
            "/".join(["prompt", *(f"{turn.role} {_said(turn.content)}" for turn in sample.prompt)])
        )
    if group:
        keys.append(f"group/{sample.source}/{group}")
    return [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) for key in keys]


def _said(text: str) -> str:
    """A text without case, and with one space for any blanks."""
    return " ".join(text.casefold().split())


class Splits:
    """The split of every sample, once all have been seen."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        """Of every sample; the first of those that are bound together is its own."""
        self._least: list[int] = []
        """The least bond of the samples below: names them, whatever their order."""
        self._owner: dict[int, int] = {}
        """A sample that has a bond."""
        self._own: list[str] = []

    def add(self, bonds: Iterable[int], own: str) -> None:
        """The next sample; `own` is the split that its source gives it, empty for none."""
        bonds, place = list(bonds), len(self._parent)
        self._parent.append(place)
        self._least.append(min(bonds))
        self._own.append(own)
        for bond in bonds:
            self._bind(self._owner.setdefault(bond, place), place)

    def decided(self, val_fraction: float, seed: int) -> Iterator[str]:
        """Of every sample, in order: its own; else `val`, if one that is bound to it is; else their own, or drawn."""
        roots = [self._root(place) for place in range(len(self._parent))]
        given: dict[int, str] = {}
        for root, own in zip(roots, self._own, strict=True):
            if own == "val" or (own and root not in given):
                given[root] = own
        for root, own in zip(roots, self._own, strict=True):
            yield own or given.get(root) or split(f"{self._least[root]:016x}", val_fraction, seed)

    def _bind(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self._parent[second] = first
        self._least[first] = min(self._least[first], self._least[second])

    def _root(self, place: int) -> int:
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place
