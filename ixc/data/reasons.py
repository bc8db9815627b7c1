"""Why a pair is dropped, and what a person can do about it."""

from typing import Literal, NamedTuple, get_args

Reason = Literal[
    "no answer",
    "identical answers",
    "no verdict",
    "tie",
    "rejected wins",
    "chosen too long",
    "language",
    "in benchmark",
    "media missing",
    "media damaged",
    "duplicate id",
    "duplicate",
    "near duplicate",
    "contradiction",
    "held out",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

ADVICE: dict[Reason, str] = {
    "no answer": "Give the pair both answers, or remove it at its source.",
    "identical answers": "Nothing can be learned from it; sample with a higher temperature.",
    "no verdict": "Judge it: give the stage judge a model, or the prompt a gold answer.",
    "tie": "The judge saw no difference; nothing to do.",
    "rejected wins": "Chosen and rejected are exchanged at the source; exchange them back.",
    "chosen too long": "The paper's length constraint; raise validate.max_length_ratio if length is quality.",
    "language": "Drop or translate it at its source; if the language is welcome, add it to validate.languages.",
    "in benchmark": "The model will be tested on it; nothing to do, unless validate.benchmarks names the wrong file.",
    "media missing": "Run `dvc repro collect`, or `dvc pull data/media`.",
    "media damaged": "Delete the stored file and run `dvc repro collect`.",
    "duplicate id": "Make ids unique within the source; the first pair is kept.",
    "duplicate": "The same pair again; the first one is kept.",
    "near duplicate": "Nearly the same pair; the first one is kept. If both matter, raise validate.near_duplicates.",
    "contradiction": "An earlier pair prefers the other answer and is kept; judge both again, or drop both.",
    "held out": "Its prompt or media are in val, or held out among the prompts; val stays as it is.",
}


class Objection(NamedTuple):
    """What speaks against a pair."""

    reason: Reason
    detail: str = ""
    """What exactly: the other pair, the file, the numbers."""
