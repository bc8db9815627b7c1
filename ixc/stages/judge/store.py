"""Verdicts are paid for: one JSON line each, on disk before the next is asked for, never asked for twice.

A reply that cannot be read is paid for, too: it is a line with `"winner": null`, and what was asked three times in
vain is not asked again; nor is what the server or the model refused, which has its reason in `"refused"`. To have it
asked again, remove those lines: `sed -i '/"winner": null/d' data/verdicts/<model>.jsonl`, or only the refused ones:
`sed -i '/"refused": "/d' data/verdicts/<model>.jsonl`.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ixc.io.journal import Journal

Winner = Literal["first", "second", "tie"]
Order = Literal["reference_first", "reference_second"]


class QuestionRef(NamedTuple):
    """What a stored judgement says of its question."""

    key: str
    """SHA-256 of everything the judge sees - prompt, rubric, images, answers, their order - and of its name."""
    sample: str
    """The prompt's id."""
    order: Order
    """Where the answer stood that is held against the others."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Judgement:
    """A judge's reply about two answers in one order."""

    key: str
    """As in `QuestionRef`, like `sample` and `order`."""
    model: str
    sample: str
    order: Order
    winner: Winner | None
    """None while no reply could be read."""
    reason: str
    """Without a winner, how the last reply began."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """US dollars; like the tokens, of all replies."""
    attempts: int = 1
    """Replies that it took, those that could not be read among them."""
    refused: str | None = None
    """Why the server or the model will not judge it; it is not asked again."""


_LINE = TypeAdapter(Judgement)


def slug(model: str) -> str:
    """A model's name in file names and metrics.

    >>> slug("org/judge:1")
    'org-judge-1'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


class VerdictStore:
    """One judge's judgements: a JSONL file that only grows, and its lines by key, of which the last one counts."""

    def __init__(self, folder: Path, model: str) -> None:
        """Open `<folder>/<model>.jsonl`.

        Raises:
            ValueError: a line that is not a judgement; a torn last line, left by a kill, is dropped instead.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{slug(model)}.jsonl"
        self._journal = Journal(self.path)
        self._judgements: dict[str, Judgement] = {}
        # The last line of a key counts: an unreadable reply may have got a readable successor.
        for number, line in enumerate(self._journal, 1):
            judgement = self._decode(line, number)
            self._judgements[judgement.key] = judgement

    def _decode(self, line: bytes, number: int) -> Judgement:
        """A line as a judgement, or an error that names the line."""
        try:
            return _LINE.validate_json(line)
        except ValidationError as error:
            # The first fault is enough: the remedy is the same for all.
            detail = error.errors()[0]
            where = ".".join(map(str, detail["loc"])) or "line"
            raise ValueError(
                f"{self.path}:{number}: {where}: {detail['msg']}; remove the line, it is then asked for again"
            ) from error

    def __len__(self) -> int:
        return len(self._judgements)

    def get(self, key: str) -> Judgement | None:
        """The judgement under a key, if there was ever a reply; it may have no winner."""
        return self._judgements.get(key)

    def add(self, judgement: Judgement) -> None:
        """Store a judgement, in place of an older one; it is on the disk when this returns."""
        if self._judgements.get(judgement.key) == judgement:
            return
        # On the disk first: what is in memory alone was paid for in vain if we are killed now.
        self._journal.append(_LINE.dump_python(judgement))
        self._judgements[judgement.key] = judgement
