"""Which of the samples that came in are used: exact numbers per source and domain, images to texts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
    group: str
    """Samples that are used together: pairs, prompts or corpus, of one split."""
    has_media: bool

    @property
    def is_trained_on(self) -> bool:
        """Rows of the corpus are only cleaned."""
        return not self.group.startswith("corpus")


def ticket(sample: Sample, seed: int) -> Ticket:
    """The ticket of a sample."""
    digest = hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()
    return Ticket(
        rank=digest[:8],
        source=sample.source,
        domain=sample.domain,
        group=f"{sample.role}/{sample.split}",
        has_media=bool(sample.media),
    )


def draw(tickets: Sequence[Ticket], params: MixtureParams) -> list[bool]:
    """Whether each sample is used.

    Where a number is larger than what there is, all is used. The sources' numbers are applied first, then the domains',
    then `images_per_text`, which may leave out what was counted before.

    >>> texts = [Ticket(bytes([i]), "a", "general", "pairs/train", False) for i in range(3)]
    >>> draw(texts, MixtureParams(sources={"a": 2}))
    [True, True, False]

    Raises:
        BadMixture: the sources' numbers alone make another number of images to each text.
    """
    _check(tickets, params)

    # By rank: a sample's luck is its own, whatever others there are.
    places = range(len(tickets))
    drawn = sorted(places, key=lambda place: (tickets[place].rank, place))
    drawn = _first(drawn, lambda place: tickets[place].source, params.sources)
    drawn = _first(drawn, lambda place: _domain(tickets[place]), params.domains)

    # Last the ratio, which has to hold among what is left.
    if params.images_per_text:
        remaining = [tickets[place] for place in drawn]
        most = _in_proportion(remaining, params.images_per_text)
        drawn = _first(drawn, lambda place: _kind(tickets[place]), most)
    chosen = set(drawn)
    return [place in chosen for place in places]


def _domain(ticket: Ticket) -> str | None:
    """What `domains` limits: a sample's domain, if it is trained on."""
    return ticket.domain if ticket.is_trained_on else None


def _kind(ticket: Ticket) -> tuple[str, bool]:
    """What `images_per_text` limits: samples of a group, with media or without."""
    return ticket.group, ticket.has_media


def _check(tickets: Sequence[Ticket], params: MixtureParams) -> None:
    """Where each source has a number, and only images or none, nothing is left for `images_per_text` to decide."""
    kinds: defaultdict[str, set[bool]] = defaultdict(set)
    for each in tickets:
        if each.is_trained_on:
            kinds[each.source].add(each.has_media)
    ratio, numbers = params.images_per_text, params.sources
    if not ratio or params.domains:
        return
    for name, kind in kinds.items():
        if name not in numbers or len(kind) > 1:
            return

    # Every source has one kind, and all their numbers are known: so is the ratio.
    with_media: dict[str, int] = {}
    without: dict[str, int] = {}
    for name, kind in kinds.items():
        group = with_media if True in kind else without
        group[name] = numbers[name]
    num_images, num_texts = sum(with_media.values()), sum(without.values())
    if not num_images or not num_texts:
        return
    # A tenth is allowed, for the splits differ by chance.
    if not 0.9 <= num_images / (ratio * num_texts) <= 1 / 0.9:
        raise BadMixture(
            f"params.yaml: collect.mixture.images_per_text: {ratio}: but sources asks for {num_images:,} samples with "
            f"pictures ({_listed(with_media)}) and {num_texts:,} without ({_listed(without)}): "
            f"ask for {ratio * num_texts:,} with, or for {num_images // ratio:,} without, or remove images_per_text"
        )


def _listed(numbers: Mapping[str, int]) -> str:
    """Numbers by name, as a message has them."""
    return ", ".join(f"{name}: {number}" for name, number in numbers.items())


def _first(
    places: Sequence[int],
    kind_of: Callable[[int], object],
    most: Mapping[Any, int],
) -> list[int]:
    """At most so many of each kind, the first ones."""
    counts: Counter[object] = Counter()
    first = []
    for place in places:
        kind = kind_of(place)
        counts[kind] += 1
        if kind not in most or counts[kind] <= most[kind]:
            first.append(place)
    return first


def _in_proportion(tickets: Sequence[Ticket], images_per_text: int) -> dict[tuple[str, bool], int]:
    """How many with and without an image each group may have at most."""
    counts: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for each in tickets:
        if each.is_trained_on:
            counts[each.group][each.has_media] += 1
    most = {}
    for group, count in counts.items():
        # A group of one kind alone is left as it is: there is nothing to balance.
        if count[True] and count[False]:
            texts = min(count[False], count[True] // images_per_text)
            most[group, True] = texts * images_per_text
            most[group, False] = texts
    return most
