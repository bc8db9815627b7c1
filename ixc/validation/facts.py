"""What the rules need to know of a pair: a few digests and counts instead of its texts and media."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import pandas as pd

from ixc.judging.constraints import language_of
from ixc.samples import Media, Sample, Turn
from ixc.validation.benchmarks import Benchmarks
from ixc.validation.duplicates import Signature, signature
from ixc.validation.reasons import Objection
from ixc.validation.texts import Words

LANGUAGE_EVERY, LANGUAGE_WORDS = 16, 8
"""One text of so many is asked for its language, if it has so many words: a guess takes a millisecond."""


@dataclass(slots=True)
class Facts:
    """A pair in small: a million of them fit into memory."""

    id: str
    source: str
    domain: str
    modality: str
    split: str
    judge: str | None
    winner: str | None
    orders_agree: bool
    """Whether a judge that was asked in both orders said the same; True if it was not."""
    scores_finite: bool
    """Whether cost and rewards are numbers, and the cost is not negative."""
    prompt: bytes
    """Digest of its words and media: "Describe the picture." is asked of every picture."""
    media: tuple[Media, ...]
    pair: bytes
    """Digest of prompt and answers, to the letter."""
    exchanged: bytes
    """The same with the answers exchanged: what contradicts this pair."""
    prompt_words: int
    chosen_length: int
    rejected_length: int
    answers_differ: bool
    num_candidates: int
    distinct_candidates: int
    overlap: str
    """Where a benchmark has the same text; empty if none has."""
    language: str | None
    """ISO 639-1 code, of some pairs only."""
    objection: Objection | None = None
    """Why the pair is dropped; None: it is kept."""


class Observer:
    """Looks at pairs.

    Args:
        length: how long a text is.
        benchmarks: what no pair should share with.
    """

    def __init__(self, length: Callable[[str], int], benchmarks: Benchmarks) -> None:
        self.length, self._benchmarks = length, benchmarks
        self._media: dict[Media, Media] = {}

    def facts(self, sample: Sample) -> Facts:
        """What the rules need to know."""
        return self.facts_and_signature(sample)[0]

    def facts_and_signature(self, sample: Sample) -> tuple[Facts, Signature]:
        """The same, and what near duplicates are found by."""
        asked, chosen, rejected = text(sample.prompt), text(sample.chosen), text(sample.rejected)
        parts = tuple(map(Words.of, (asked, chosen, rejected)))
        verdict, digests = sample.verdict, [media.sha256 for media in sample.media]
        pair = ([[turn.role, turn.content] for turn in sample.prompt], digests)
        facts = Facts(
            id=sample.id,
            source=intern(sample.source),
            domain=intern(sample.domain),
            modality=intern(sample.modality),
            split=intern(sample.split),
            judge=intern(verdict.judge) if verdict else None,
            winner=intern(verdict.winner) if verdict else None,
            orders_agree=len(set(verdict.orders)) <= 1 if verdict else True,
            scores_finite=_scores_finite(sample),
            prompt=_digest(parts[0].spoken, digests),
            media=tuple(self._media.setdefault(media, media) for media in sample.media),
            pair=_digest(*pair, chosen, rejected),
            exchanged=_digest(*pair, rejected, chosen),
            prompt_words=len(parts[0].spoken),
            chosen_length=self.length(chosen),
            rejected_length=self.length(rejected),
            answers_differ=chosen != rejected,
            num_candidates=len(sample.candidates),
            distinct_candidates=len(set(sample.candidates)),
            overlap=self._benchmarks.text_overlap(parts),
            language=_language(sample.id, f"{asked} {chosen}", sum(len(part.spoken) for part in parts[:2])),
        )
        return facts, signature(*parts)


def text(turns: Sequence[Turn]) -> str:
    """What an answer says, without space around it."""
    return "\n".join(turn.content for turn in turns).strip()


def _scores_finite(sample: Sample) -> bool:
    cost = sample.verdict.cost if sample.verdict else 0.0
    return all(map(math.isfinite, (cost, *sample.rewards))) and cost >= 0


def _language(id: str, said: str, num_words: int) -> str | None:
    asked = num_words >= LANGUAGE_WORDS and _digest(id)[0] % LANGUAGE_EVERY == 0
    return intern(language_of(said.lower())) if asked else None


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


_OBJECTS = "id source domain modality split judge winner prompt media language overlap".split()
_FLAGS = "orders_agree scores_finite answers_differ media_stored prompt_in_one_split media_in_one_split kept".split()
_NUMBERS = "prompt_words num_media chosen_length rejected_length num_candidates distinct_candidates".split()
COLUMNS = {
    **dict.fromkeys(_OBJECTS, "object"),
    **dict.fromkeys(_FLAGS, "bool"),
    **dict.fromkeys(_NUMBERS, "int64"),
    "length_ratio": "float64",
    "chosen_longer": "float64",
}
"""The table that Great Expectations looks at. `media`: digests, joined by spaces; `length_ratio`: chosen over
rejected; `chosen_longer`: 1 or 0, and 0.5 for answers of equal length."""


def table_of(facts: Sequence[Facts], root: Path) -> pd.DataFrame:
    """One row a pair, with what follows from all pairs together and from the media store at `root`."""
    stored = {media.path: (root / media.path).is_file() for fact in facts for media in fact.media}
    splits: dict[bytes | str, set[str]] = defaultdict(set)
    for fact in facts:
        for key in (fact.prompt, *(media.sha256 for media in fact.media)):
            splits[key].add(fact.split)
    both = np.array([(fact.chosen_length, fact.rejected_length) for fact in facts], float).reshape(-1, 2)
    columns: dict[str, Any] = {
        field.name: [getattr(fact, field.name) for fact in facts] for field in fields(Facts) if field.name in COLUMNS
    }
    columns |= {
        "prompt": [fact.prompt.hex() if fact.prompt_words else None for fact in facts],
        "media": [" ".join(media.sha256 for media in fact.media) for fact in facts],
        "num_media": [len(fact.media) for fact in facts],
        "overlap": [fact.overlap or None for fact in facts],
        "kept": [fact.objection is None for fact in facts],
        "length_ratio": both[:, 0] / np.maximum(both[:, 1], 1),
        "chosen_longer": (1 + np.sign(both[:, 0] - both[:, 1])) / 2,
        "media_stored": [all(stored[media.path] for media in fact.media) for fact in facts],
        "prompt_in_one_split": [len(splits[fact.prompt]) == 1 for fact in facts],
        "media_in_one_split": [all(len(splits[media.sha256]) == 1 for media in fact.media) for fact in facts],
    }
    return pd.DataFrame({name: pd.Series(columns[name], dtype=kind) for name, kind in COLUMNS.items()})
