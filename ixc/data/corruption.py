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
    """A spoilt copy of a row; the row itself stays as it is."""

    row: int
    kind: str
    """`empty`, `hallucination` or `mismatch`."""
    sample: Sample


@dataclass
class Pool:
    """The media of rows of one kind, in the order of the rows, and where each stands."""

    media: list[tuple[Media, ...]] = field(default_factory=list)
    places: dict[tuple[Media, ...], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, media: tuple[Media, ...]) -> None:
        """A further row's media."""
        self.places[media].append(len(self.media))
        self.media.append(media)

    def num_others(self, media: tuple[Media, ...]) -> int:
        """Rows with other media than these."""
        return len(self.media) - len(self.places[media])

    def other(self, media: tuple[Media, ...], number: int) -> tuple[Media, ...]:
        """The media of one of them, by its number among them."""
        # the place whose number among the others this is: as many places further as own ones stand before it
        shifts = [place - before for before, place in enumerate(self.places[media])]
        return self.media[number + bisect_right(shifts, number)]


class Planting:
    """Spoilt copies of a share of a corpus's rows, each in one of the ways open to it; equal seeds spoil equally."""

    def __init__(self, corpus: Corpus, share: float, seed: int) -> None:
        """Read the corpus once, where there is anything to plant; rows without an answer are left out."""
        self.corpus, self.rng = corpus, random.Random(seed)
        self.pools: dict[Kind, Pool] = defaultdict(Pool)
        sound: list[int] = []
        for row, sample in enumerate(corpus() if share else ()):
            if not isinstance(sample, BadRecord) and not objection_to_turns(sample.chosen):
                sound.append(row)
                self.pools[_kind(sample)].add(sample.media)
        drawn = self.rng.sample(range(len(sound)), round(share * len(sound)))
        self.rows = sorted(sound[i] for i in drawn)
        """Numbers of the rows that are spoilt."""
        self.kinds: dict[int, str] = {}
        """How each was, once its copy was asked for."""

    def defects(self) -> Iterator[Defect]:
        """The spoilt copies, in the order of the rows; the corpus is read again."""
        rng = random.Random()
        rng.setstate(self.rng.getstate())
        drawn = set(self.rows)
        for row, sample in enumerate(self.corpus() if drawn else ()):
            if row in drawn and not isinstance(sample, BadRecord):
                defect = self._spoilt(row, sample, rng)
                self.kinds[row] = defect.kind
                yield defect

    def _spoilt(self, row: int, sample: Sample, rng: random.Random) -> Defect:
        pool, wrong = self.pools[_kind(sample)], _wrong(sample)
        others = pool.num_others(sample.media) if sample.media else 0
        ways: dict[str, Callable[[], Sample]] = {
            "empty": lambda: replace(sample, chosen=answer(rng.choice(EVASIVE))),
        }
        if wrong:
            ways["hallucination"] = lambda: replace(sample, chosen=answer(rng.choice(wrong)))
        if others:
            ways["mismatch"] = lambda: replace(
                sample, media=pool.other(sample.media, rng.randrange(others))
            )
        kind = rng.choice(sorted(ways))
        return Defect(row, kind, ways[kind]())


def _kind(sample: Sample) -> Kind:
    return sample.domain, sample.modality, len(sample.media)


def _wrong(sample: Sample) -> list[str]:
    """Answers that the source knows to be wrong; a corpus of somebody's own may keep something else there."""
    known = sample.meta.get("wrong")
    return [text for text in known if isinstance(text, str)] if isinstance(known, list) else []
