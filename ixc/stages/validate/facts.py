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
"""Where no language is required, one pair of so many is guessed, for the page; a guess needs so many words of letters
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
    """Whether a judge that saw both orders gave one verdict; True if it saw one."""
    scores_finite: bool
    """Whether cost and rewards are numbers, and the cost is not negative."""
    ratings_sound: bool
    """Whether the source, where it rates both answers (`meta.ratings`), rates the chosen one higher."""
    prompt: bytes
    """Digest of its words and media: "Describe the picture." is asked of every image."""
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
    """ISO 639-1 code; None of a text too short to tell, or of one that was not guessed."""
    reason: Reason | None
    """Why the pair is dropped; None: it is not."""
    detail: str = ""
    """What exactly: the other pair, the file, the numbers."""


class RowGroup(NamedTuple):
    """A row group in small."""

    facts: pd.DataFrame
    """A column for each field of `Facts`."""
    signatures: Signatures
    """What near duplicates are detected by; of no row where they were not requested."""


class Observer:
    """Looks at samples.

    Args:
        params: what speaks against a pair.
        benchmarks: what no pair should share with.

    Raises:
        BadParams: the tokenizer cannot be read.
    """

    def __init__(self, params: ValidateParams, benchmarks: Benchmarks) -> None:
        self._params = params
        self._benchmarks = benchmarks
        # Each answer is measured twice, once for the rule and once for the page.
        self._length = lru_cache(4)(ruler(params))
        self._language_every = 1 if params.languages else LANGUAGE_EVERY

    def row_group(
        self,
        path: Path,
        group: int | None = None,
        sign: bool = False,
    ) -> RowGroup:
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

        # Signing pulls the samples through, so that their texts are never all in memory.
        signed = signatures(observed())
        return RowGroup(frame(facts), signed)

    def facts(self, sample: Sample) -> Facts:
        """What the rules need to know of a sample."""
        return self._facts(sample, _words(sample))

    def _facts(
        self,
        sample: Sample,
        words: tuple[Words, ...],
    ) -> Facts:
        """The same, of a sample whose words are known."""
        question = text(sample.prompt)
        chosen = text(sample.chosen)
        rejected = text(sample.rejected)
        verdict = sample.verdict
        media_digests = [media.sha256 for media in sample.media]

        # Digests to the letter; two pairs contradict each other if their answers are exchanged.
        turns = [[turn.role, turn.content] for turn in sample.prompt]
        prompt_digest = _digest(turns, media_digests)
        chosen_digest, rejected_digest = _digest(chosen), _digest(rejected)

        # Which pairs a language is guessed of depends on their ids alone.
        overlap = self._benchmarks.text_overlap(words) or None
        language = None
        if _digest(sample.id)[0] % self._language_every == 0:
            language = _language(question, chosen)
        against = objection(sample, self._params, self._length)
        against = against or self._contextual_objection(overlap, language)
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
            prompt=_digest(words[0].spoken, media_digests),
            media=sample.media,
            pair=_joined(prompt_digest, chosen_digest, rejected_digest),
            exchanged=_joined(prompt_digest, rejected_digest, chosen_digest),
            prompt_words=len(words[0].spoken),
            chosen_length=self._length(chosen),
            rejected_length=self._length(rejected),
            answers_differ=chosen != rejected,
            num_candidates=len(sample.candidates),
            distinct_candidates=len(set(sample.candidates)),
            overlap=overlap,
            language=language,
            reason=against.reason if against else None,
            detail=against.detail if against else "",
        )

    def _contextual_objection(
        self,
        overlap: str | None,
        language: str | None,
    ) -> Objection | None:
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
    """Whether cost and rewards are numbers, and the cost is not negative."""
    cost = sample.verdict.cost if sample.verdict else 0.0
    numbers = (cost, *sample.rewards)
    return all(map(math.isfinite, numbers)) and cost >= 0


def _ratings_sound(ratings: Any) -> bool:
    """Whether ratings of chosen and rejected, if there are any, are numbers in this order."""
    if ratings is None:
        return True
    # A source may have put anything into its metadata.
    if not isinstance(ratings, list):
        return False
    for rating in ratings:
        if not isinstance(rating, int | float) or not math.isfinite(rating):
            return False
    return len(ratings) == 2 and ratings[0] > ratings[1]


def _language(*texts: str) -> str | None:
    """The language of texts by their beginnings; None if these are too short to tell."""
    # Beginnings are enough, and the time of a guess grows with the text.
    beginnings = " ".join(text[:LANGUAGE_CHARACTERS] for text in texts)
    num_words = sum(map(str.isalpha, Words.of(beginnings).spoken))
    if num_words < LANGUAGE_WORDS:
        return None
    return intern(language_of(beginnings.lower()))


def _digest(*values: object) -> bytes:
    """Of anything that JSON can hold."""
    # Sixteen bytes in place of the sixty-four of `ixc.io.digests`: a million rows have four each.
    return _joined(json.dumps(values).encode())


def _joined(*digests: bytes) -> bytes:
    """A digest of digests: 16 bytes."""
    return hashlib.blake2b(b"".join(digests), digest_size=16).digest()


_KINDS = {bool: "bool", int: "int64"}


def frame(facts: Iterable[Facts]) -> pd.DataFrame:
    """A row for each, a column for each field."""
    rows = list(facts)
    columns = {}
    for field in fields(Facts):
        values = [getattr(row, field.name) for row in rows]
        # With its type even where there is no row.
        kind = _KINDS.get(field.type, "object")
        columns[field.name] = pd.Series(values, dtype=kind)
    return pd.DataFrame(columns)


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
    unusable: Collection[str] = (),
    held_out: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The facts, and what follows from all of them together and from the media store at `root`.

    Args:
        unusable: paths of the media that cannot be used.
        held_out: facts of the prompts of val, which no pair of train may share anything with.
    """
    val = frame([]) if held_out is None else held_out
    media, splits = facts["media"], facts["split"]

    # A prompt without words has no digest: it is one that nobody can compare.
    prompts = []
    for digest, num_words in zip(facts.prompt, facts.prompt_words, strict=True):
        prompts.append(digest.hex() if num_words else None)
    digests = list(_media_digests(facts))
    derived = {
        "prompt": prompts,
        "media": [" ".join(row) for row in digests],
        "num_media": [len(row) for row in digests],
        "media_stored": _all_of(media, lambda one: (root / one.path).is_file()),
        "media_sound": _all_of(media, lambda one: one.path not in unusable),
        "prompt_in_one_split": _in_one_split(_prompts(facts), splits, _prompts(val)),
        "media_in_one_split": _in_one_split(digests, splits, _media_digests(val)),
    }

    # Lengths of what comes out: a judge that only counts words shows here.
    chosen, rejected = facts["chosen_length"], facts["rejected_length"]
    derived["length_ratio"] = chosen / rejected.clip(lower=1)
    derived["chosen_longer"] = (1 + np.sign(chosen - rejected)) / 2

    kinds = {"prompt": "object", "media": "object", "num_media": "int64"}
    columns: dict[str, Any] = {}
    for name, values in derived.items():
        columns[name] = pd.Series(values, facts.index, dtype=kinds.get(name))
    return facts.assign(**columns).loc[:, list(COLUMNS)]


def _all_of(rows: Iterable[tuple[Media, ...]], is_good: Callable[[Media], bool]) -> np.ndarray:
    """Of each row, whether all its media are good; each is checked once."""
    # Many rows refer to one image, and the disk is slow.
    check_once = cache(is_good)
    return np.array([all(map(check_once, row)) for row in rows], bool)


def _prompts(facts: pd.DataFrame) -> Iterator[list[bytes]]:
    """The prompt of each row, as a list of one key."""
    for digest in facts["prompt"]:
        yield [digest]


def _media_digests(facts: pd.DataFrame) -> Iterator[list[str]]:
    """The digests of the media of each row."""
    for row in facts["media"]:
        yield [media.sha256 for media in row]


def _in_one_split(
    keys: Iterable[Sequence[object]],
    splits: Iterable[str],
    held_out: Iterable[Sequence[object]],
) -> np.ndarray:
    """Of each row, whether none of its keys is also in the other split; `held_out`: keys of val in any case."""
    # The first split that a key is met in is its own; every other one is a leak.
    rows = list(keys)
    split_of = {key: "val" for row in held_out for key in row}
    in_both = set[object]()
    for row, split in zip(rows, splits, strict=True):
        for key in row:
            if split_of.setdefault(key, split) != split:
                in_both.add(key)
    return np.array([in_both.isdisjoint(row) for row in rows], bool)
