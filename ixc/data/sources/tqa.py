"""TQA: choices on the diagrams of school textbooks. CC BY-NC 3.0; no commercial use.

Native: `{train,val,test}/tqa_v*_<split>.json`, a list of lessons, `{"globalID", "questions": {"diagramQuestions":
{<id>: {"beingAsked", "answerChoices": {<letter>: ...}, "correctAnswer", "imagePath"}}}}`, each text in
`{"processedText"}`, the right letter too; `imagePath` is relative to the file. Questions without a diagram
are left out: they ask about chapters that are no part of the question.

Source: A. Kembhavi et al., CVPR 2017; https://prior.allenai.org/projects/tqa.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import choice, lettered, position
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, media, take
from ixc.data.sources.tables import Entry, each

LICENCE = Licence(name="CC BY-NC 3.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per question on a diagram."""
    return each(path, _rows, "**/tqa_v*.json", unfold=_questions)


def _questions(lesson: Record) -> Iterator[tuple[str, Any]]:
    yield from take(take(lesson, "questions", dict), "diagramQuestions", dict).items()


def _rows(entry: Entry) -> list[Row]:
    record, name = entry.record, take(entry.record, "imagePath", str)
    choices = sorted(take(record, "answerChoices", dict).items())
    options = [take(option, "processedText", str) for _, option in choices]
    right = position([letter for letter, _ in choices], _text(record, "correctAnswer"))
    row = Row(
        id=entry.key.partition("/")[2],
        domain="text_rich",
        prompt=lettered(_text(record, "beingAsked"), options),
        media=(media(entry.folder, f"{PurePosixPath(entry.file).parent}/{name}", "image"),),
        group=name,
        **choice(options, right),
    )
    return [row]


def _text(record: Record, name: str) -> str:
    return take(take(record, name, dict), "processedText", str)
