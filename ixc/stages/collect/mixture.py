"""Which of the samples that came in are kept: exact numbers per source and domain, pictures to texts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ixc.data.samples import Sample
from ixc.params import MixtureParams


class BadMixture(ValueError):
    """Numbers that contradict each other: their keys and values, and what to change."""


class Ticket(NamedTuple):
    """What the draw knows of a sample."""

    rank: bytes
    """Uniform, and the same whatever other samples there are."""
    source: str
    domain: str
    pile: str
    """Samples that are used together: pairs, prompts or corpus, of one split."""
    pictured: bool

    @property
    def is_trained_on(self) -> bool:
        """Rows of the corpus are only cleaned."""
        return not self.pile.startswith("corpus")


def ticket(sample: Sample, seed: int) -> Ticket:
    """The ticket of a sample."""
    rank = hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()[:8]
    return Ticket(
        rank, sample.source, sample.domain, f"{sample.role}/{sample.split}", bool(sample.media)
    )


def draw(tickets: Sequence[Ticket], params: MixtureParams) -> list[bool]:
    """Whether each sample is kept.

    Where a number is larger than what there is, all is kept. The sources' numbers are applied first, then the domains',
    then `images_per_text`, which may leave out what was counted before.

    >>> texts = [Ticket(bytes([i]), "a", "general", "pairs/train", False) for i in range(3)]
    >>> draw(texts, MixtureParams(sources={"a": 2}))
    [True, True, False]

    Raises:
        BadMixture: the sources' numbers alone make another number of pictures to each text.
    """
    _check(tickets, params)
    kept = sorted(range(len(tickets)), key=lambda i: (tickets[i].rank, i))
    kept = _first(kept, lambda i: tickets[i].source, params.sources)
    kept = _first(
        kept, lambda i: tickets[i].domain if tickets[i].is_trained_on else None, params.domains
    )
    if params.images_per_text:
        kept = _first(
            kept,
            lambda i: tickets[i][3:],
            _in_step([tickets[i] for i in kept], params.images_per_text),
        )
    chosen = set(kept)
    return [i in chosen for i in range(len(tickets))]


def _check(tickets: Sequence[Ticket], params: MixtureParams) -> None:
    """Where each source has a number, and only pictures or none, nothing is left for `images_per_text` to decide."""
    kinds: defaultdict[str, set[bool]] = defaultdict(set)
    for each in tickets:
        if each.is_trained_on:
            kinds[each.source].add(each.pictured)
    ratio, asked = params.images_per_text, params.sources
    if (
        not ratio
        or params.domains
        or any(name not in asked or len(kind) > 1 for name, kind in kinds.items())
    ):
        return
    shown, unshown = (
        {name: asked[name] for name in kinds if pictured in kinds[name]}
        for pictured in (True, False)
    )
    images, texts = sum(shown.values()), sum(unshown.values())
    if (
        images and texts and not 0.9 <= images / (ratio * texts) <= 1 / 0.9
    ):  # the splits differ by chance
        raise BadMixture(
            f"params.yaml: collect.mixture.images_per_text: {ratio}: but sources asks for {images:,} samples with "
            f"pictures ({_listed(shown)}) and {texts:,} without ({_listed(unshown)}): ask for {ratio * texts:,} with, "
            f"or for {images // ratio:,} without, or remove images_per_text"
        )


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in numbers.items())


def _first(kept: Sequence[int], kind: Callable[[int], object], most: Mapping) -> list[int]:
    """At most so many of each kind, the first ones."""
    count: Counter[object] = Counter()
    left = []
    for i in kept:
        count[kind(i)] += 1
        if kind(i) not in most or count[kind(i)] <= most[kind(i)]:
            left.append(i)
    return left


def _in_step(tickets: Sequence[Ticket], images_per_text: int) -> dict[tuple[str, bool], int]:
    """How many with and without a picture each pile keeps."""
    there: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for each in tickets:
        if each.is_trained_on:
            there[each.pile][each.pictured] += 1
    most = {}
    for pile, count in there.items():
        if count[True] and count[False]:
            texts = min(count[False], count[True] // images_per_text)
            most |= {(pile, True): texts * images_per_text, (pile, False): texts}
    return most
