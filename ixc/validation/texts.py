"""Texts as hashes of their words: what duplicates and overlaps with benchmarks are found by."""

import re
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt64

Hashes = UInt64[np.ndarray, " _"]

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+|[-+*/=<>^%×÷−]")
_ASCII_WORD = re.compile(r"[a-z0-9]+|[-+*/=<>^%]")
"""What `_WORD` finds in ASCII in small letters, twice as fast."""
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Words:
    """A text without case and punctuation; signs of mathematics count, and so does each Chinese character.

    >>> Words.of("The answer: 3-5 = -2!").spoken
    ['the', 'answer', '3', '-', '5', '=', '-', '2']
    """

    spoken: list[str]

    @classmethod
    def of(cls, text: str) -> "Words":
        said = text.casefold()
        return cls((_ASCII_WORD if said.isascii() else _WORD).findall(said))

    @cached_property
    def numbers(self) -> Hashes:
        """One for each word, the same in every process."""
        return np.fromiter(map(_NUMBERS.__getitem__, self.spoken), np.uint64, len(self.spoken))


class _Numbers(dict[str, int]):
    """The number of each word: a few words make up most of what is said."""

    def __missing__(self, word: str) -> int:
        if len(self) == 1 << 17:
            self.clear()
        self[word] = number = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return number


_NUMBERS = _Numbers()


def ngrams(numbers: Hashes, n: int) -> Hashes:
    """A number for every `n` consecutive words; a shorter text is one piece.

    >>> len(ngrams(Words.of("one two three").numbers, 2)), len(ngrams(Words.of("one").numbers, 2))
    (2, 1)
    """
    n = min(n, len(numbers))
    if n == 0:
        return numbers
    last = len(numbers) - n + 1
    total = numbers[:last].copy()
    for start in range(1, n):
        total = total * _FACTOR + numbers[start : last + start]
    return mixed(total)


def mixed(numbers: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the number (the finalizer of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX
    return numbers ^ (numbers >> np.uint64(27))
