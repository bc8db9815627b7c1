"""Texts as hashes of their words: what duplicates and overlaps with benchmarks are found by."""

import re
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

Hashes = UInt64[np.ndarray, " _"]

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+|[-+*/=<>^%×÷−]")
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


class Words(NamedTuple):
    """A text without case and punctuation; signs of mathematics count, and so does each Chinese character.

    >>> Words.of("The answer: 3-5 = -2!").spoken
    ['the', 'answer', '3', '-', '5', '=', '-', '2']
    """

    spoken: list[str]
    numbers: Hashes
    """One for each word, the same in every process."""

    @classmethod
    def of(cls, text: str) -> "Words":
        spoken = _WORD.findall(text.casefold())
        return cls(spoken, np.fromiter(map(_number, spoken), np.uint64, len(spoken)))


@lru_cache(1 << 16)  # a few words make up most of what is said
def _number(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


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
