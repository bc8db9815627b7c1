"""What the rules need to know of a pair: a few digests and counts instead of its texts and media."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ixc.samples import Media, Sample, Turn


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
    prompt: str
    """Digest of its text and media: "Describe the picture." is asked of every picture."""
    media: tuple[Media, ...]
    pair: str
    """Digest of prompt and answers."""
    chosen_words: int
    rejected_words: int
    answers_differ: bool
    reason: str | None = None
    """Why the pair is dropped; None: it is kept."""


def facts_of(sample: Sample, reason: str | None = None) -> Facts:
    """Look at a pair."""
    chosen, rejected = text(sample.chosen), text(sample.rejected)
    prompt = _digest([[turn.role, turn.content] for turn in sample.prompt], [m.sha256 for m in sample.media])
    return Facts(
        id=sample.id,
        source=sample.source,
        domain=sample.domain,
        modality=sample.modality,
        split=sample.split,
        judge=sample.verdict.judge if sample.verdict else None,
        winner=sample.verdict.winner if sample.verdict else None,
        prompt=prompt,
        media=sample.media,
        pair=_digest(prompt, chosen, rejected),
        chosen_words=words(chosen),
        rejected_words=words(rejected),
        answers_differ=chosen != rejected,
        reason=reason,
    )


def text(turns: Sequence[Turn]) -> str:
    """What an answer says, without space around it."""
    return "\n".join(turn.content for turn in turns).strip()


def words(answer: str) -> int:
    """How long an answer is."""
    return len(answer.split())


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


COLUMNS = {
    "id": "object",
    "source": "object",
    "domain": "object",
    "modality": "object",
    "split": "object",
    "judge": "object",
    "winner": "object",
    "prompt": "object",
    "media": "object",
    "chosen_words": "int64",
    "rejected_words": "int64",
    "chosen_longer": "float64",
    "answers_differ": "bool",
    "media_stored": "bool",
    "prompt_in_one_split": "bool",
    "media_in_one_split": "bool",
}
"""The table that Great Expectations looks at. `media`: digests, joined by spaces; `chosen_longer`: 1 or 0,
and 0.5 for answers of equal length."""


def table_of(facts: Sequence[Facts], root: Path) -> pd.DataFrame:
    """One row a pair, with what follows from all pairs together and from the media store at `root`."""
    stored = {media.path: (root / media.path).is_file() for fact in facts for media in fact.media}
    splits: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        for key in (fact.prompt, *(media.sha256 for media in fact.media)):
            splits[key].add(fact.split)
    own = [name for name in COLUMNS if name in Facts.__slots__]
    records = [
        {
            **{name: getattr(fact, name) for name in own},
            "media": " ".join(media.sha256 for media in fact.media),
            "chosen_longer": _order(fact.chosen_words, fact.rejected_words),
            "media_stored": all(stored[media.path] for media in fact.media),
            "prompt_in_one_split": len(splits[fact.prompt]) == 1,
            "media_in_one_split": all(len(splits[media.sha256]) == 1 for media in fact.media),
        }
        for fact in facts
    ]
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)


def _order(first: int, second: int) -> float:
    return 0.5 if first == second else float(first > second)
