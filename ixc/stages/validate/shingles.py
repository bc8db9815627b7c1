"""Texts as hashes of their words: what duplicates and overlaps with benchmarks are found by."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, UInt64

Hashes = UInt64[np.ndarray, " _"]

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+|[-+*/=<>^%×÷−]")
_ASCII_WORD = re.compile(r"[a-z0-9]+|[-+*/=<>^%]")
"""What `_WORD` finds in ASCII in small letters, twice as fast."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Words:
    """A text without case and punctuation; signs of mathematics count, and so does each Chinese character.

    >>> Words.of("The answer: 3-5 = -2!").spoken
    ['the', 'answer', '3', '-', '5', '=', '-', '2']
    """

    spoken: list[str]

    @classmethod
    def of(cls, text: str) -> "Words":
        """The words of a text."""
        folded = text.casefold()
        pattern = _ASCII_WORD if folded.isascii() else _WORD
        return cls(pattern.findall(folded))

    @cached_property
    def numbers(self) -> Hashes:
        """One for each word, the same in every process."""
        numbers = map(_NUMBERS.__getitem__, self.spoken)
        return np.fromiter(numbers, np.uint64, len(self.spoken))


class _Numbers(dict[str, int]):
    """The number of each word: a few words make up most of any text."""

    def __missing__(self, word: str) -> int:
        """The number of a word that is not remembered."""
        if len(self) == 1 << 17:  # some ten megabytes
            self.clear()
        number = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        self[word] = number
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
    # A polynomial of the words' numbers: their order matters.
    last = len(numbers) - n + 1
    total = numbers[:last].copy()
    for start in range(1, n):
        total = total * _FACTOR + numbers[start : last + start]
    return mixed(total)


def shingles(
    texts: Sequence[Hashes],
    n: int,
    short: int,
) -> tuple[Hashes, Int[np.ndarray, " _"]]:
    """A number for every `n` consecutive words of each text, and which text it is of, text after text.

    The second time that a text has the same words it is another shingle, for "no" is not "no no". A text of fewer than
    `short` words is one shingle, one without words none.
    """
    lengths = np.array([len(text) for text in texts])
    owners = np.repeat(np.arange(len(texts)), lengths)
    numbers = np.concatenate(texts) if texts else np.zeros(0, np.uint64)
    brief = lengths < short

    # The brief ones, word by word: as `ngrams` of the whole text.
    first_words = np.cumsum(lengths) - lengths
    whole = np.zeros(len(texts), np.uint64)
    longest = int(lengths.max(initial=0))
    for word in range(min(short - 1, longest)):
        longer = np.flatnonzero(brief & (lengths > word))
        next_words = numbers[first_words[longer] + word]
        whole[longer] = whole[longer] * _FACTOR + next_words
    pieces = np.flatnonzero(brief & (lengths > 0))

    # The others: where the last word of a shingle is of the same text as its first.
    last = max(len(numbers) - n + 1, 0)
    of_one_text = owners[:last] == owners[n - 1 :]
    starts = np.flatnonzero(of_one_text & ~brief[owners[:last]])
    total = numbers[starts].copy()
    for word in range(1, n):
        total = total * _FACTOR + numbers[starts + word]
    total = _distinguished(mixed(total), owners[starts])

    # Both kinds together, in the order of the texts.
    hashes = np.concatenate([mixed(whole[pieces]), total])
    places = np.concatenate([pieces, owners[starts]])
    order = np.argsort(places, kind="stable")
    return hashes[order], places[order]


def _distinguished(hashes: Hashes, owners: Int[np.ndarray, " _"]) -> Hashes:
    """Equal numbers of one owner made different by how often they came before."""
    keys = mixed(hashes + owners.astype(np.uint64) * _FACTOR)
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    firsts = np.flatnonzero(np.diff(sorted_keys, prepend=~sorted_keys[:1]))

    # In a run of equal keys, the place counted from its first.
    run_lengths = np.diff(firsts, append=len(hashes))
    num_before = np.empty(len(hashes), np.uint64)
    num_before[order] = np.arange(len(hashes)) - np.repeat(firsts, run_lengths)
    return mixed(hashes + num_before)


def mixed(numbers: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the number (the finalizer of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX
    return numbers ^ (numbers >> np.uint64(27))
