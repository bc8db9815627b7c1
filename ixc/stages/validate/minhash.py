"""Near duplicates by MinHash with locality-sensitive hashing, in arrays: 500 bytes a pair.

MinHash: Broder, "On the resemblance and containment of documents", 1997; of each minimum 16 bits are kept
(b-bit minwise hashing, arXiv:0910.3349). The minima are rensa's, in Rust; an index of Python objects, as its own or
datasketch's, takes 3.5 kB a pair.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt16
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

from ixc.stages.validate.shingles import Hashes, Words, mixed, shingles

SHINGLE = 2
"""Consecutive words that count as one: order matters, and a changed word costs two shingles."""
SHORT = 16
"""A text of fewer words is one piece: every word of it matters."""
BANDS, ROWS = 42, 3
"""Pairs are compared if a band of `ROWS` minima of the prompt and as many of the answers agree. With a
similarity s of both, that happens with probability 1 - (1 - s^6)^42: 0.9997 at 0.75, 0.48 at 0.5."""
MINIMA = BANDS * ROWS

AT_ONCE = 1 << 20
"""Words whose shingles are in memory together: a hundred bytes each. A longer text has them alone."""

Signatures = UInt16[np.ndarray, "pairs 2 minima"]
PromptSignatures = UInt16[np.ndarray, "_ 1 minima"]
"""The first half of a signature."""

_SEED = 0
_CHOSEN, _REJECTED = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344)


def signatures(pairs: Iterable[tuple[Words, Words, Words]]) -> Signatures:
    """Minima of each pair's prompt, and of its answers together; the exchanged answers are not the same answers.

    Args:
        pairs: prompt, chosen and rejected of each.
    """
    parts = [_signatures(some) for some in _some(pairs)]
    return np.concatenate(parts) if parts else np.zeros((0, 2, MINIMA), np.uint16)


def _some(
    pairs: Iterable[tuple[Words, Words, Words]],
) -> Iterator[list[tuple[Words, Words, Words]]]:
    """The pairs, as many together as have `AT_ONCE` words."""
    some, size = list[tuple[Words, Words, Words]](), 0
    for pair in pairs:
        some.append(pair)
        size += sum(len(words.spoken) for words in pair)
        if size >= AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _signatures(pairs: Sequence[tuple[Words, Words, Words]]) -> Signatures:
    texts = [words.numbers for pair in pairs for words in pair]
    found, owners = shingles(texts, SHINGLE, SHORT)

    # A word of the chosen answer is not that word of the rejected one.
    kind = owners % 3
    found = np.where(kind == 1, found ^ _CHOSEN, np.where(kind == 2, found ^ _REJECTED, found))

    # Two sets a pair: the prompt, and both answers.
    sets = owners // 3 * 2 + (kind > 0)
    starts = np.searchsorted(sets, np.arange(2 * len(pairs) + 1)).astype(np.uint64)
    minima = RMinHash.digest_matrix_from_flat_token_hashes(found, starts, MINIMA, _SEED).to_rows()
    low = mixed(np.array(minima, np.uint64).ravel()) >> np.uint64(48)
    return low.astype(np.uint16).reshape(len(pairs), 2, MINIMA)


def near_duplicates(
    signatures: Signatures | PromptSignatures, groups: Hashes, threshold: float
) -> Int[np.ndarray, " pairs"]:
    """For each pair the first pair that it nearly repeats, or its own place if there is none.

    Args:
        signatures: in the order in which pairs are preferred: of two alike, the later one repeats the earlier.
        groups: only pairs of one group are compared: those that show the same pictures.
        threshold: Jaccard similarity, estimated, of the prompts and likewise of the answers.
    """
    first = np.arange(len(signatures))
    edges = [_alike_edges(signatures, keys, threshold) for keys in _bands(signatures, groups)]
    if not edges:
        return first
    for later, earlier in np.unique(np.concatenate(edges), axis=0).tolist():
        root = int(first[earlier])
        if first[later] == later and (
            root == earlier or _alike(signatures, later, root, threshold)
        ):
            first[later] = root
    return first


def near_prompts(
    prompts: PromptSignatures,
    rows: Int[np.ndarray, " n"],
    unseen: PromptSignatures,
    threshold: float,
) -> Int[np.ndarray, " n"]:
    """For each of the rows the place of one of the unseen prompts that it nearly repeats, or -1.

    Args:
        threshold: Jaccard similarity, estimated.
    """
    found = np.full(len(rows), -1)
    if len(unseen):
        index = [_sorted(keys) for keys in _bands(unseen, np.zeros(len(unseen), np.uint64))]
        for start in range(0, len(rows), 65536):
            part = slice(start, start + 65536)
            found[part] = _nearly(prompts[rows[part]], unseen, index, threshold)
    return found


def _nearly(
    prompts: PromptSignatures,
    unseen: PromptSignatures,
    index: Sequence[tuple[Hashes, np.ndarray]],
    threshold: float,
) -> Int[np.ndarray, " _"]:
    """`near_prompts` by the keys of the unseen ones, in order and with their places, for each band."""
    found = np.full(len(prompts), -1)
    for keys, (known, places) in zip(
        _bands(prompts, np.zeros(len(prompts), np.uint64)), index, strict=True
    ):
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        rows = np.flatnonzero((known[at] == keys) & (found < 0))
        others = places[at[rows]]
        alike = (prompts[rows, 0] == unseen[others, 0]).mean(axis=1) >= threshold
        found[rows[alike]] = others[alike]
    return found


def _sorted(keys: Hashes) -> tuple[Hashes, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _bands(signatures: Signatures | PromptSignatures, groups: Hashes) -> Iterator[Hashes]:
    """For every band one key a pair: equal keys are compared."""
    for start in range(0, MINIMA, ROWS):
        keys = groups
        for row in range(start, start + ROWS):
            for part in range(signatures.shape[1]):
                keys = mixed(keys * np.uint64(31) + signatures[:, part, row])
        yield keys


def _alike_edges(
    signatures: Signatures | PromptSignatures, keys: Hashes, threshold: float
) -> Int[np.ndarray, "edges 2"]:
    """(later, earlier) of the alike pairs: each pair against the first and the previous one of its key."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
    heads = np.repeat(order[starts], np.diff(starts, append=len(order)))
    previous = np.roll(order, 1)
    inner = order != heads
    later, first, before = order[inner], heads[inner], previous[inner]
    edges = np.concatenate([np.stack([later, first], 1), np.stack([later, before], 1)])
    return edges[_similar(signatures, edges, threshold)]


def _similar(
    signatures: Signatures | PromptSignatures, edges: Int[np.ndarray, "edges 2"], threshold: float
) -> Bool[np.ndarray, " edges"]:
    found = np.zeros(len(edges), bool)
    for start in range(0, len(edges), 65536):
        a, b = edges[start : start + 65536].T
        shares = (signatures[a] == signatures[b]).mean(axis=2)
        found[start : start + 65536] = (shares >= threshold).all(axis=1)
    return found


def _alike(
    signatures: Signatures | PromptSignatures, one: int, other: int, threshold: float
) -> bool:
    return bool(((signatures[one] == signatures[other]).mean(axis=1) >= threshold).all())
