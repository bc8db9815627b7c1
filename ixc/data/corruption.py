"""Bad answers of the kinds that the paper found in instruction-tuning corpora (section 4.3, figure 2)."""

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ixc.data.samples import BadRecord, Media, Sample, answer, objection_to_turns

EVASIVE = (
    "",
    "I am not sure.",
    "I cannot tell.",
    "Sorry, I do not know.",
    "It depends.",
    "Let me think about it.",
)
"""Empty or evasive answers."""
Corpus = Callable[[], Iterable[Sample | BadRecord]]
"""Reads the rows from the first; in the place of one that is no sample stands why."""
Kind = tuple[str, str, int]
"""Domain, modality and number of media: rows of one kind can exchange their media."""


class Defect(NamedTuple):
    """A corrupted copy of a row; the row itself stays as it is."""

    row: int
    kind: str
    """`empty`, `hallucination` or `mismatch`."""
    sample: Sample


@dataclass
class Pool:
    """The media of rows of one kind, in the order of the rows."""

    media: list[tuple[Media, ...]] = field(default_factory=list)
    places: dict[tuple[Media, ...], list[int]] = field(default_factory=lambda: defaultdict(list))
    """Where in `media` each stands, ascending."""

    def add(self, media: tuple[Media, ...]) -> None:
        """A further row's media."""
        self.places[media].append(len(self.media))
        self.media.append(media)

    def num_others(self, media: tuple[Media, ...]) -> int:
        """Rows with other media than these."""
        return len(self.media) - len(self.places[media])

    def other(self, media: tuple[Media, ...], number: int) -> tuple[Media, ...]:
        """The media of one of them, by its number among them."""
        # The place of the others' n-th: n, and as many further as own ones stand before it. Own place number k has
        # `place - k` of the others before it.
        others_before = [place - k for k, place in enumerate(self.places[media])]
        num_own_before = bisect_right(others_before, number)
        return self.media[number + num_own_before]


class Planting:
    """Corrupted copies of a share of a corpus's rows, each in one of the ways open to it; equal for equal seeds."""

    def __init__(self, corpus: Corpus, share: float, seed: int) -> None:
        """Read the corpus once, where there is anything to plant; rows without an answer are left out."""
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.pools: dict[Kind, Pool] = defaultdict(Pool)
        usable: list[int] = []
        for row, sample in enumerate(corpus() if share else ()):
            if not isinstance(sample, BadRecord) and not objection_to_turns(sample.chosen):
                usable.append(row)
                self.pools[_kind(sample)].add(sample.media)
        drawn = self.rng.sample(range(len(usable)), round(share * len(usable)))
        self.rows = sorted(usable[i] for i in drawn)
        """Numbers of the rows that are corrupted."""
        self.kinds: dict[int, str] = {}
        """How each was, once its copy was made."""

    def defects(self) -> Iterator[Defect]:
        """The corrupted copies, in the order of the rows; the corpus is read again."""
        # A copy of the generator: every reading corrupts alike.
        rng = random.Random()
        rng.setstate(self.rng.getstate())
        drawn = set(self.rows)
        for row, sample in enumerate(self.corpus() if drawn else ()):
            if row in drawn and not isinstance(sample, BadRecord):
                defect = self._corrupted(row, sample, rng)
                self.kinds[row] = defect.kind
                yield defect

    def _corrupted(
        self,
        row: int,
        sample: Sample,
        rng: random.Random,
    ) -> Defect:
        pool = self.pools[_kind(sample)]
        wrong = _wrong(sample)
        num_others = pool.num_others(sample.media) if sample.media else 0
        kinds = ["empty"]
        if wrong:
            kinds.append("hallucination")
        if num_others:
            kinds.append("mismatch")

        kind = rng.choice(kinds)
        match kind:
            case "empty":
                copy = replace(sample, chosen=answer(rng.choice(EVASIVE)))
            case "hallucination":
                copy = replace(sample, chosen=answer(rng.choice(wrong)))
            case _:
                media = pool.other(sample.media, rng.randrange(num_others))
                copy = replace(sample, media=media)
        return Defect(row, kind, copy)


def _kind(sample: Sample) -> Kind:
    return sample.domain, sample.modality, len(sample.media)


def _wrong(sample: Sample) -> list[str]:
    """Answers that the source knows to be wrong; a corpus of somebody's own may keep something else there."""
    wrong = sample.meta.get("wrong")
    if not isinstance(wrong, list):
        return []
    return [text for text in wrong if isinstance(text, str)]
