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
_CHOSEN = np.uint64(0x243F6A8885A308D3)
_REJECTED = np.uint64(0x13198A2E03707344)
_CHUNK = 65536
"""Pairs that are compared at once: some hundred bytes each."""
_PairWords = tuple[Words, Words, Words]
"""Of prompt, chosen and rejected."""


def signatures(pairs: Iterable[_PairWords]) -> Signatures:
    """Minima of each pair's prompt, and of its answers together; the exchanged answers are not the same answers.

    Args:
        pairs: prompt, chosen and rejected of each.
    """
    chunks = [_signatures(chunk) for chunk in _chunks(pairs)]
    if not chunks:
        return np.zeros((0, 2, MINIMA), np.uint16)
    return np.concatenate(chunks)


def _chunks(pairs: Iterable[_PairWords]) -> Iterator[list[_PairWords]]:
    """The pairs, as many together as have `AT_ONCE` words."""
    chunk: list[_PairWords] = []
    num_words = 0
    for pair in pairs:
        chunk.append(pair)
        num_words += sum(len(words.spoken) for words in pair)
        if num_words >= AT_ONCE:
            yield chunk
            chunk, num_words = [], 0
    if chunk:
        yield chunk


def _signatures(pairs: Sequence[_PairWords]) -> Signatures:
    """Those of a few pairs together."""
    texts = [words.numbers for pair in pairs for words in pair]
    hashes, owners = shingles(texts, SHINGLE, SHORT)

    # A word of the chosen answer is not that word of the rejected one.
    kind = owners % 3
    answers = np.where(kind == 2, hashes ^ _REJECTED, hashes)
    hashes = np.where(kind == 1, hashes ^ _CHOSEN, answers)

    # Two sets a pair: the prompt, and both answers.
    sets = owners // 3 * 2 + (kind > 0)
    starts = np.searchsorted(sets, np.arange(2 * len(pairs) + 1))
    starts = starts.astype(np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, MINIMA, _SEED)
    minima = np.array(digests.to_rows(), np.uint64)

    # Sixteen bits of each minimum are enough, once every bit depends on all of it.
    low = mixed(minima.ravel()) >> np.uint64(48)
    return low.astype(np.uint16).reshape(len(pairs), 2, MINIMA)


def near_duplicates(
    signatures: Signatures | PromptSignatures, groups: Hashes, threshold: float
) -> Int[np.ndarray, " pairs"]:
    """For each pair the first pair that it nearly repeats, or its own place if there is none.

    Args:
        signatures: in the order in which pairs are preferred: of two alike, the later one repeats the earlier.
        groups: only pairs of one group are compared: those with the same images.
        threshold: Jaccard similarity, estimated, of the prompts and likewise of the answers.
    """
    first = np.arange(len(signatures))
    edges = [_alike_edges(signatures, keys, threshold) for keys in _bands(signatures, groups)]
    if not edges:
        return first

    # In order, so that the earlier one of an edge already has its root; and never through a chain
    # of small changes: a pair must be like the root itself.
    distinct = np.unique(np.concatenate(edges), axis=0)
    for later, earlier in distinct.tolist():
        if first[later] != later:
            continue
        root = int(first[earlier])
        if root == earlier or _alike(signatures, later, root, threshold):
            first[later] = root
    return first


def near_prompts(
    prompts: PromptSignatures,
    rows: Int[np.ndarray, " n"],
    held_out: PromptSignatures,
    threshold: float,
) -> Int[np.ndarray, " n"]:
    """For each of the rows the place of one of the held-out prompts that it nearly repeats, or -1.

    Args:
        threshold: Jaccard similarity, estimated.
    """
    # Val is small: its keys are sorted once, and those of train looked up in them.
    nearest = np.full(len(rows), -1)
    if not len(held_out):
        return nearest
    index = [_sorted(keys) for keys in _bands(held_out, _one_group(held_out))]
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        nearest[chunk] = _nearest(prompts[rows[chunk]], held_out, index, threshold)
    return nearest


def _nearest(
    prompts: PromptSignatures,
    held_out: PromptSignatures,
    index: Sequence[tuple[Hashes, np.ndarray]],
    threshold: float,
) -> Int[np.ndarray, " _"]:
    """`near_prompts` by the keys of the held-out ones, in order and with their places, for each band."""
    nearest = np.full(len(prompts), -1)
    bands = _bands(prompts, _one_group(prompts))
    for keys, (known, places) in zip(bands, index, strict=True):
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        is_candidate = (known[at] == keys) & (nearest < 0)
        rows = np.flatnonzero(is_candidate)
        others = places[at[rows]]
        is_equal = prompts[rows, 0] == held_out[others, 0]
        is_alike = is_equal.mean(axis=1) >= threshold
        nearest[rows[is_alike]] = others[is_alike]
    return nearest


def _one_group(signatures: Signatures | PromptSignatures) -> Hashes:
    """The groups of signatures that are all compared with each other."""
    return np.zeros(len(signatures), np.uint64)


def _sorted(keys: Hashes) -> tuple[Hashes, np.ndarray]:
    """Keys in order, with the places where they stood."""
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _bands(signatures: Signatures | PromptSignatures, groups: Hashes) -> Iterator[Hashes]:
    """For every band one key a pair: equal keys are compared."""
    for start in range(0, MINIMA, ROWS):
        keys = groups
        for row in range(start, start + ROWS):
            for text in range(signatures.shape[1]):
                keys = mixed(keys * np.uint64(31) + signatures[:, text, row])
        yield keys


def _alike_edges(
    signatures: Signatures | PromptSignatures,
    keys: Hashes,
    threshold: float,
) -> Int[np.ndarray, "edges 2"]:
    """(later, earlier) of the alike pairs: each pair against the first and the previous one of its key."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    before_first = sorted_keys[:1] + np.uint64(1)  # another key than the first
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=before_first))
    run_lengths = np.diff(starts, append=len(order))
    heads = np.repeat(order[starts], run_lengths)
    previous = np.roll(order, 1)

    # The head of a run has nothing before it.
    inner = order != heads
    later = order[inner]
    to_first = np.stack([later, heads[inner]], 1)
    to_previous = np.stack([later, previous[inner]], 1)
    edges = np.concatenate([to_first, to_previous])
    return edges[_similar(signatures, edges, threshold)]


def _similar(
    signatures: Signatures | PromptSignatures,
    edges: Int[np.ndarray, "edges 2"],
    threshold: float,
) -> Bool[np.ndarray, " edges"]:
    """Which of the pairs of places are alike in all their texts."""
    is_similar = np.zeros(len(edges), bool)
    for start in range(0, len(edges), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        later, earlier = edges[chunk].T
        shares = (signatures[later] == signatures[earlier]).mean(axis=2)
        is_similar[chunk] = (shares >= threshold).all(axis=1)
    return is_similar


def _alike(
    signatures: Signatures | PromptSignatures,
    one: int,
    other: int,
    threshold: float,
) -> bool:
    """Whether two places are alike in all their texts."""
    shares = (signatures[one] == signatures[other]).mean(axis=1)
    return bool((shares >= threshold).all())
