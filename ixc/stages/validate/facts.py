"""What the rules need to know of a sample: a few digests and counts instead of its texts and media."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ixc.data.reasons import Objection, Reason
from ixc.data.samples import Media, Sample, read_samples
from ixc.params import ValidateParams
from ixc.stages.validate.contamination import Benchmarks
from ixc.stages.validate.minhash import Signatures, signatures
from ixc.stages.validate.rules import objection, ruler, text
from ixc.stages.validate.shingles import Words
from ixc.verifiers.languages import language_of

LANGUAGE_EVERY, LANGUAGE_WORDS, LANGUAGE_CHARACTERS = 16, 8, 128
"""Where no language is asked for, one pair of so many is guessed, for the page; a guess needs so many words of letters
in the beginnings of prompt and chosen answer, each of so many characters. It takes 0.1 to 0.2 ms. Of
1400 real English pairs none was taken for another language."""


@dataclass(slots=True)
class Facts:
    """A sample in small: a million of them fit into memory, as columns of a table."""

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
    ratings_sound: bool
    """Whether the source, where it rates both answers (`meta.ratings`), rates the chosen one higher."""
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
    overlap: str | None
    """Where a benchmark has the same text; None if none has."""
    language: str | None
    """ISO 639-1 code; None of a text too short to tell, or of one that was not asked."""
    reason: Reason | None
    """Why the pair is dropped; None: it is kept."""
    detail: str = ""
    """What exactly: the other pair, the file, the numbers."""


class Part(NamedTuple):
    """A row group in small."""

    facts: pd.DataFrame
    """A column for each field of `Facts`."""
    signatures: Signatures
    """What near duplicates are found by; of no row where they were not asked for."""


class Observer:
    """Looks at samples.

    Args:
        params: what speaks against a pair.
        benchmarks: what no pair should share with.

    Raises:
        BadParams: the tokenizer cannot be read.
    """

    def __init__(self, params: ValidateParams, benchmarks: Benchmarks) -> None:
        self._params, self._benchmarks = params, benchmarks
        self._length = lru_cache(4)(ruler(params))
        self._language_every = 1 if params.languages else LANGUAGE_EVERY

    def part(self, path: Path, group: int | None = None, sign: bool = False) -> Part:
        """A row group of a table of samples, or all of it; `sign`: with signatures.

        Raises:
            BadRecord: a row or a column is not what the schema says.
        """
        facts = list[Facts]()

        def observed() -> Iterator[tuple[Words, Words, Words]]:
            for sample in read_samples(path, group):
                words = _words(sample)
                facts.append(self._facts(sample, words))
                if sign:
                    yield words

        signed = signatures(observed())
        return Part(frame(facts), signed)

    def facts(self, sample: Sample) -> Facts:
        """What the rules need to know of a sample."""
        return self._facts(sample, _words(sample))

    def _facts(self, sample: Sample, words: tuple[Words, ...]) -> Facts:
        asked, chosen, rejected = map(text, (sample.prompt, sample.chosen, sample.rejected))
        verdict, digests = sample.verdict, [media.sha256 for media in sample.media]
        start = _digest([[turn.role, turn.content] for turn in sample.prompt], digests)
        ends = _digest(chosen), _digest(rejected)
        overlap = self._benchmarks.text_overlap(words) or None
        language = (
            _language(asked, chosen) if _digest(sample.id)[0] % self._language_every == 0 else None
        )
        found = objection(sample, self._params, self._length) or self._against(overlap, language)
        return Facts(
            id=sample.id,
            source=intern(sample.source),
            domain=intern(sample.domain),
            modality=intern(sample.modality),
            split=intern(sample.split),
            judge=intern(verdict.judge) if verdict else None,
            winner=intern(verdict.winner) if verdict else None,
            orders_agree=len(set(verdict.orders)) <= 1 if verdict else True,
            scores_finite=_scores_finite(sample),
            ratings_sound=_ratings_sound(sample.meta.get("ratings")),
            prompt=_digest(words[0].spoken, digests),
            media=sample.media,
            pair=_joined(start, *ends),
            exchanged=_joined(start, *ends[::-1]),
            prompt_words=len(words[0].spoken),
            chosen_length=self._length(chosen),
            rejected_length=self._length(rejected),
            answers_differ=chosen != rejected,
            num_candidates=len(sample.candidates),
            distinct_candidates=len(set(sample.candidates)),
            overlap=overlap,
            language=language,
            reason=found.reason if found else None,
            detail=found.detail if found else "",
        )

    def _against(self, overlap: str | None, language: str | None) -> Objection | None:
        """What speaks against a sample that shares a text with a benchmark or is in a language."""
        if overlap:
            return Objection("in benchmark", overlap)
        languages = self._params.languages
        if languages and language and language not in languages:
            return Objection("language", f"{language}, not {' or '.join(languages)}")
        return None


def _words(sample: Sample) -> tuple[Words, Words, Words]:
    """Those of prompt, chosen and rejected."""
    return (
        Words.of(text(sample.prompt)),
        Words.of(text(sample.chosen)),
        Words.of(text(sample.rejected)),
    )


def _scores_finite(sample: Sample) -> bool:
    cost = sample.verdict.cost if sample.verdict else 0.0
    return all(map(math.isfinite, (cost, *sample.rewards))) and cost >= 0


def _ratings_sound(ratings: Any) -> bool:
    """Whether ratings of chosen and rejected, if there are any, are numbers in this order."""
    if ratings is None:
        return True
    if not isinstance(ratings, list) or not all(
        isinstance(one, int | float) and math.isfinite(one) for one in ratings
    ):
        return False
    return len(ratings) == 2 and ratings[0] > ratings[1]


def _language(*texts: str) -> str | None:
    """The language of texts by their beginnings; None if these are too short to tell."""
    said = " ".join(part[:LANGUAGE_CHARACTERS] for part in texts)
    telling = sum(map(str.isalpha, Words.of(said).spoken)) >= LANGUAGE_WORDS
    return intern(language_of(said.lower())) if telling else None


def _digest(*parts: object) -> bytes:
    return _joined(json.dumps(parts).encode())


def _joined(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


_KINDS = {bool: "bool", int: "int64"}


def frame(facts: Iterable[Facts]) -> pd.DataFrame:
    """A row for each, a column for each field."""
    rows = list(facts)
    kinds = {field.name: _KINDS.get(field.type, "object") for field in fields(Facts)}
    return pd.DataFrame(
        {
            name: pd.Series([getattr(row, name) for row in rows], dtype=kind)
            for name, kind in kinds.items()
        }
    )


COLUMNS = tuple(
    """id source domain modality split judge winner prompt media language overlap orders_agree scores_finite
    ratings_sound answers_differ prompt_words chosen_length rejected_length num_candidates distinct_candidates num_media
    media_stored media_sound prompt_in_one_split media_in_one_split length_ratio chosen_longer""".split()
)
"""Of the table that Great Expectations looks at. `prompt`: a digest, none of a prompt without words; `media`: digests,
joined by spaces; `media_sound`: nothing speaks against one of them; `length_ratio`: chosen over rejected;
`chosen_longer`: 1 or 0, and 0.5 for answers of equal length."""
TABLED = [field.name for field in fields(Facts) if field.name in COLUMNS]
"""The facts that the table is made of."""


def table_of(
    facts: pd.DataFrame,
    root: Path,
    spoilt: Collection[str] = (),
    held_out: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The facts, and what follows from all of them together and from the media store at `root`.

    Args:
        spoilt: paths of the media that cannot be used.
        held_out: facts of the prompts of val, which no pair of train may share anything with.
    """
    apart = frame([]) if held_out is None else held_out
    shown = facts["media"]
    more = {
        "prompt": [
            digest.hex() if num else None
            for digest, num in zip(facts.prompt, facts.prompt_words, strict=True)
        ],
        "media": [" ".join(media.sha256 for media in row) for row in shown],
        "num_media": [len(row) for row in shown],
        "media_stored": _all_of(shown, lambda media: (root / media.path).is_file()),
        "media_sound": _all_of(shown, lambda media: media.path not in spoilt),
        "prompt_in_one_split": _in_one_split(_prompts(facts), facts["split"], _prompts(apart)),
        "media_in_one_split": _in_one_split(_digests(facts), facts["split"], _digests(apart)),
        "length_ratio": facts["chosen_length"] / facts["rejected_length"].clip(lower=1),
        "chosen_longer": (1 + np.sign(facts["chosen_length"] - facts["rejected_length"])) / 2,
    }
    objects = {"prompt": "object", "media": "object", "num_media": "int64"}
    columns: dict[str, Any] = {
        name: pd.Series(column, facts.index, dtype=objects.get(name))
        for name, column in more.items()
    }
    return facts.assign(**columns).loc[:, list(COLUMNS)]


def _all_of(shown: Iterable[tuple[Media, ...]], good: Callable[[Media], bool]) -> np.ndarray:
    """Of each row, whether all its media are good; each is asked about once."""
    ask = cache(good)
    return np.array([all(map(ask, row)) for row in shown], bool)


def _prompts(facts: pd.DataFrame) -> Iterator[list[bytes]]:
    return ([digest] for digest in facts["prompt"])


def _digests(facts: pd.DataFrame) -> Iterator[list[str]]:
    return ([media.sha256 for media in row] for row in facts["media"])


def _in_one_split(
    keys: Iterable[Sequence[object]], splits: Iterable[str], held_out: Iterable[Sequence[object]]
) -> np.ndarray:
    """Of each row, whether none of its keys is also in the other split; `held_out`: keys of val in any case."""
    rows, torn = list(keys), set[object]()
    first = {key: "val" for row in held_out for key in row}
    for row, split in zip(rows, splits, strict=True):
        torn.update(key for key in row if first.setdefault(key, split) != split)
    return np.array([torn.isdisjoint(row) for row in rows], bool)
