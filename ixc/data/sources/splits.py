"""Which rows are held out: what the authors of a set keep for tests, and whatever shares an image or a prompt with it.

Rows that share an image, a video, a group of their source or, where they have no media, a prompt are bound together,
across sources and through other rows, and go into one split.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Literal

from ixc.data.samples import Sample

_TRAINING = {"train", "trainval", "minitrain"}
_HELD_OUT = set("val valid validation dev test testmini minival minitest eval".split())


def held_out(name: str) -> Literal["val"] | None:
    """Never train on what its authors keep for validation and tests; `collect` splits the rest.

    Args:
        name: a split's name, or a file that has it in its own name or, failing that, its folder's.

    >>> [held_out(name) for name in ("tqa_train_val_test/train/a.json", "aokvqa_v1p0_val.json", "data.json")]
    [None, 'val', None]
    """
    for part in reversed(PurePath(name).parts):
        words = set(re.findall("[a-z]+", part.lower()))
        if words & _TRAINING:
            return None
        if words & _HELD_OUT:
            return "val"
    return None


def split(group: str, val_fraction: float, seed: int) -> str:
    """`val` for a fixed share of the groups, whatever else there is.

    >>> 150 < sum(split(f"group {i}", 0.2, seed=0) == "val" for i in range(1000)) < 250
    True
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    fraction = int.from_bytes(digest[:4]) / 2**32
    return "val" if fraction < val_fraction else "train"


def link_keys(sample: Sample, group: str) -> list[int]:
    """What links a sample to others: 64 bits for its group, for each image or video, or for its prompt of words alone.

    Args:
        group: of the sample's source; empty for none.
    """
    keys = [f"media/{file.sha256}" for file in sample.media]
    if not keys:
        messages = [f"{turn.role} {_folded(turn.content)}" for turn in sample.prompt]
        keys.append("/".join(["prompt", *messages]))
    if group:
        keys.append(f"group/{sample.source}/{group}")
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    return [int.from_bytes(digest[:8]) for digest in digests]


def _folded(text: str) -> str:
    """A text without case, and with one space for any blanks."""
    return " ".join(text.casefold().split())


class Splits:
    """The split of every sample, once all have been seen: a union-find over samples that share a link key."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        """Of every sample; the first of those that are linked is its own."""
        self._least_key: list[int] = []
        """The least link key of the samples below: names them, whatever their order."""
        self._owner: dict[int, int] = {}
        """A sample that has a link key."""
        self._own: list[str] = []
        """The split that a sample's source gives it, empty for none."""

    def add(self, keys: Iterable[int], own: str) -> None:
        """The next sample; `own` is the split that its source gives it, empty for none."""
        keys = list(keys)
        sample = len(self._parent)
        self._parent.append(sample)
        self._least_key.append(min(keys))
        self._own.append(own)
        for key in keys:
            owner = self._owner.setdefault(key, sample)
            self._link(owner, sample)

    def decided(self, val_fraction: float, seed: int) -> Iterator[str]:
        """Of every sample, in order: its own; else `val`, if one that is linked to it is; else their own, or drawn."""
        roots = [self._root(sample) for sample in range(len(self._parent))]

        # What the sources say of any of a group: one held-out sample holds out all.
        group_splits: dict[int, str] = {}
        for root, own in zip(roots, self._own, strict=True):
            if own == "val" or (own and root not in group_splits):
                group_splits[root] = own

        for root, own in zip(roots, self._own, strict=True):
            name = f"{self._least_key[root]:016x}"
            yield own or group_splits.get(root) or split(name, val_fraction, seed)

    def _link(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self._parent[second] = first
        self._least_key[first] = min(self._least_key[first], self._least_key[second])

    def _root(self, sample: int) -> int:
        while self._parent[sample] != sample:
            # Halve the path, so that long chains stay cheap.
            self._parent[sample] = self._parent[self._parent[sample]]
            sample = self._parent[sample]
        return sample
