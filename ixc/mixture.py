"""Which of the samples that came in are kept: exact numbers per source and domain, pictures to texts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ixc.params import MixtureParams
from ixc.samples import Sample


class Ticket(NamedTuple):
    """What the draw knows of a sample."""

    rank: bytes
    """Uniform, and the same whatever other samples there are."""
    source: str
    domain: str
    pile: str
    """Samples that are trained on together: pairs or prompts, of one split."""
    pictured: bool


def ticket(sample: Sample, seed: int) -> Ticket:
    """The ticket of a sample."""
    rank = hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()[:8]
    pile = f"{'pairs' if sample.chosen else 'prompts'}/{sample.split}"
    return Ticket(rank, sample.source, sample.domain, pile, bool(sample.media))


def draw(tickets: Sequence[Ticket], params: MixtureParams) -> list[bool]:
    """Whether each sample is kept.

    Where a number is larger than what there is, all is kept.

    >>> texts = [Ticket(bytes([i]), "a", "general", "pairs/train", False) for i in range(3)]
    >>> draw(texts, MixtureParams(sources={"a": 2}))
    [True, True, False]
    """
    kept = sorted(range(len(tickets)), key=lambda i: (tickets[i].rank, i))
    kept = _first(kept, lambda i: tickets[i].source, params.sources)
    kept = _first(kept, lambda i: tickets[i].domain, params.domains)
    if params.pictures_per_text:
        kept = _first(kept, lambda i: tickets[i][3:], _in_step([tickets[i] for i in kept], params.pictures_per_text))
    chosen = set(kept)
    return [i in chosen for i in range(len(tickets))]


def _first(kept: Sequence[int], kind: Callable[[int], object], most: Mapping) -> list[int]:
    """At most so many of each kind, the first ones."""
    count: Counter[object] = Counter()
    left = []
    for i in kept:
        count[kind(i)] += 1
        if kind(i) not in most or count[kind(i)] <= most[kind(i)]:
            left.append(i)
    return left


def _in_step(tickets: Sequence[Ticket], pictures_per_text: int) -> dict[tuple[str, bool], int]:
    """How many with and without a picture each pile keeps."""
    there: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for each in tickets:
        there[each.pile][each.pictured] += 1
    most = {}
    for pile, count in there.items():
        if count[True] and count[False]:
            texts = min(count[False], count[True] // pictures_per_text)
            most |= {(pile, True): texts * pictures_per_text, (pile, False): texts}
    return most
